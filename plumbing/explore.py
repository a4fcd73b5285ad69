"""Moving through the inputs of a generator: its main directions, ways from face to face, sliders.

z is uniform in [-1, 1], with standard deviation 1 / sqrt(3), as in training. draw is a function of z, a float tensor
(count, z_size), that gives uint8 images (count, height, width, 3). Directions are unit vectors (z_size,)."""
import io

import ipywidgets
import torch
import torch.nn.functional as F
from PIL import Image

import helpers


def named_directions(folder):
    """The main directions of the generator kept in folder, {name: direction}: its generator.json may give them names."""
    names, axes = helpers.read_generator(folder)[0].get("directions", []), helpers.directions(folder)
    return {names[n] if n < len(names) else f"direction {n + 1}": axis for n, axis in enumerate(axes)}


def difference(z, values):
    """The direction from the mean of z (count, z_size) in the lowest twentieth of values (count,) to the highest's."""
    order, tail = torch.as_tensor(values).argsort(), max(1, len(z) // 20)
    return F.normalize(z[order[-tail:]].mean(0) - z[order[:tail]].mean(0), dim=0)


def moved(z, directions, amounts):
    """z (z_size,) moved by each of amounts (count, n), in standard deviations of z, along directions (n, z_size), and
    kept within [-1, 1]: (count, z_size)."""
    return (z + 3 ** -0.5 * amounts.to(z) @ directions).clamp(-1, 1)


def strips(draw, z, directions, count=8):
    """Rows for helpers.show_rows: the face of z (z_size,) moved along each of directions, {name: direction}, in count
    steps from -2 to 2."""
    amounts = torch.linspace(-2, 2, count)[:, None]
    return {name: draw(moved(z, direction[None], amounts)) for name, direction in directions.items()}


def stepped(draw, z, directions, amount=2.0):
    """Rows for helpers.show_rows: the faces of z (count, z_size), and the same after a step of amount along each of
    directions, {name: direction}."""
    step = torch.full((1, 1), amount)
    return {"faces": draw(z)} | {name: draw(moved(z, axis[None], step)) for name, axis in directions.items()}


def between(a, b, count):
    """count points on the way from a to b (z_size,), both included: (count, z_size), each as uniform as a and b are.

    A straight line between independent uniform numbers gathers around 0 in its middle, where faces are near the mean.
    So the numbers are made normal by their quantiles, turned from one to the other along a great circle, which keeps
    them normal (White 2016), and made uniform again."""
    a, b = (torch.erfinv(end.clamp(-0.9999, 0.9999)) for end in (a, b))
    angle = F.cosine_similarity(a, b, dim=0).clamp(-0.9999, 0.9999).acos()
    t = torch.linspace(0, 1, count).to(a)[:, None]
    return torch.erf((((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin())


def walk(ends, steps):
    """The closed way through ends (count, z_size), by steps points from each to the next: (count * steps, z_size)."""
    return torch.cat([between(a, b, steps + 1)[:-1] for a, b in zip(ends, ends.roll(-1, 0))])


def png(images, times):
    """images in one row, each pixel as times x times: the bytes of a PNG."""
    picture, file = Image.fromarray(helpers.grid(images, len(images))), io.BytesIO()
    picture.resize([times * x for x in picture.size], Image.Resampling.NEAREST).save(file, "PNG", compress_level=1)
    return file.getvalue()


def uniform(folder, seed):
    """One z (z_size,) for the generator kept in folder."""
    return 2 * torch.rand(helpers.read_generator(folder)[0]["z_size"], generator=torch.Generator().manual_seed(seed)) - 1


def check_file(folder, draw):
    """Print whether the generator kept in folder draws what draw does, or why that cannot be told."""
    try:
        sample = helpers.load_generator(folder)
    except ValueError as other_layers:  # a Generator of one's own is drawn by its own code
        print(other_layers)
        return
    z = 2 * torch.rand(8, helpers.read_generator(folder)[0]["z_size"]) - 1
    same = helpers.rms(sample(z=z), draw(z)).max() < 0.02  # draw may compute in bf16
    print(f"The file draws the same faces: {same}")


def explorer(draw, directions):
    """A widget for JupyterLab and Jupyter Notebook: a face, and a slider for each of directions, {name: direction}.

    At 0 the face is that of a generator's sample(1, seed, truncation). "another face" takes the next seed and all
    sliders back to 0; a seed typed in leaves them. "keep as A" and "keep as B" set the ends of the row below."""
    axes = torch.stack(list(directions.values()))
    look = {"style": {"description_width": "12em"}, "layout": {"width": "28em"}}
    sliders = [ipywidgets.FloatSlider(0, min=-2, max=2, step=0.1, description=name, **look) for name in directions]
    truncation = ipywidgets.FloatSlider(1, min=0, max=1, step=0.05, description="truncation", **look)
    seed = ipywidgets.BoundedIntText(0, min=0, max=2**32 - 1, description="seed", **look)
    another, *keepers = [ipywidgets.Button(description=text) for text in ("another face", "keep as A", "keep as B")]
    face, row = (ipywidgets.Image(layout={"align_self": "flex-start"}) for _ in range(2))  # or they are stretched

    def uniform(seed):
        return 2 * torch.rand(axes.shape[1], generator=torch.Generator().manual_seed(seed)).to(axes) - 1

    def current():
        return moved(truncation.value * uniform(seed.value), axes, torch.tensor([[s.value for s in sliders]]))

    def show(_=None):
        images = draw(current())
        face.value = png(images, 256 // images.shape[1])

    def next_face(_):
        for slider in sliders:
            slider.value = 0
        seed.value += 1

    def keep(button=None):
        if button:
            kept[button] = current()[0]
        images = draw(between(*kept.values(), 8))
        row.value = png(images, max(1, 64 // images.shape[1]))

    kept = dict(zip(keepers, map(uniform, (0, 1))))
    for widget in (inputs := (*sliders, truncation, seed)):
        widget.observe(show, "value")
    for button, action in zip((another, *keepers), (next_face, keep, keep)):
        button.on_click(action)
    show()
    keep()
    controls = ipywidgets.VBox([*inputs, ipywidgets.HBox([another, *keepers])])
    return ipywidgets.VBox([ipywidgets.HBox([controls, face]), row])
