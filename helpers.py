"""Pictures, samples, the kept generator and measures for face_generation.ipynb.

Nothing else of the project is imported: this file beside a generator.json and a generator.safetensors is enough to draw
faces. Images are uint8 (count, height, width, 3) unless a function says otherwise."""
import io
import json
import pickle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save
from torchvision.utils import make_grid

# --- Pictures ---------------------------------------------------------------------------------------------------------

def to_uint8(images):
    """Images in [-1, 1], float tensor (count, 3, height, width), as uint8 (count, height, width, 3)."""
    pixels = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def as_pictures(loader, count):
    """The first count images of a DataLoader over indices, in their order."""
    parts = torch.as_tensor(loader.dataset[:count]).split(1024)  # as floats all of them would take four times the memory
    return np.concatenate([to_uint8(2 * loader.collate_fn(part) - 1) for part in parts])


def grid(images, columns=8):
    """images side by side: one uint8 array (rows * height, columns * width, 3) with white lines between."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return make_grid(tensor, nrow=columns, padding=1, pad_value=255).permute(1, 2, 0).numpy()


def show_rows(rows, columns=8, title=None):
    """A figure of rows, {name: images}: each a grid with its name on the left."""
    heights = [-(-len(images) // columns) for images in rows.values()]
    figure, axes = plt.subplots(len(rows), figsize=(columns, sum(heights) + 0.3 * bool(title)), layout="constrained",
                                height_ratios=heights, squeeze=False)
    for axis, (name, images) in zip(axes.flat, rows.items()):
        axis.imshow(grid(images, columns), interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name, rotation="horizontal", horizontalalignment="right", verticalalignment="center")
        axis.spines[:].set_visible(False)
    figure.suptitle(title)
    return figure


def show_faces(images, columns=8, title=None):
    """A figure of images as one grid."""
    return show_rows({"": images}, columns, title)


def show_curves(panels, title=None):
    """A figure of panels side by side, {title: (x, {label: y}, name of the x axis, name of the y axis)}."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.2), layout="constrained", squeeze=False)
    for axis, (name, (x, curves, xlabel, ylabel)) in zip(axes.flat, panels.items()):
        for (label, y), style in zip(curves.items(), ("-", "--", ":", "-.")):
            axis.plot(x, y, style, label=label)
        axis.set(title=name, xlabel=xlabel, ylabel=ylabel)
        axis.legend()
    return figure


def show_histograms(panels, title=None):
    """A figure of panels side by side, {name of what is measured: {label: values}}, each set of values as shares."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3), layout="constrained", squeeze=False)
    for axis, (name, sets) in zip(axes.flat, panels.items()):
        bins = np.histogram_bin_edges(np.concatenate(list(sets.values())), 40)
        for (label, values), style in zip(sets.items(), ("-", "--", ":")):
            axis.hist(values, bins, weights=np.full(len(values), 100 / len(values)), histtype="step", linestyle=style,
                      linewidth=1.5, label=f"{label} ({len(values):,})")
        axis.set(xlabel=name, ylabel="% of faces")
        axis.margins(y=0.5)  # room for the legend above the curves
        axis.legend()
    figure.suptitle(title)
    return figure


def show_training(columns, marks, distances, floor):
    """A figure of a run: losses, accuracies, and the distances of [G, its average] after each epoch.

    columns is {g_loss, d_loss, real_accuracy, fake_accuracy: one value a step}, marks {label: a loss of D}, floor a
    distance. Thin lines are single steps, thick ones means over a twentieth of the run."""
    count = len(columns["d_loss"])
    window = max(1, count // 20)
    figure, (losses, shares, quality) = plt.subplots(1, 3, figsize=(11.5, 3.6), layout="constrained")
    for name, axis, label, color in (
            ("d_loss", losses, "discriminator", "C0"), ("g_loss", losses, "generator", "C1"),
            ("real_accuracy", shares, "real", "C2"), ("fake_accuracy", shares, "generated", "C4")):
        if axis is losses:
            axis.plot(columns[name], color=color, alpha=0.2, linewidth=0.5)
        mean = np.convolve(columns[name], np.ones(window) / window, mode="valid")
        axis.plot(np.arange(window - 1, count), mean, color=color, label=label)
    for (label, value), style in zip(marks.items(), ("--", ":", "-.")):
        losses.axhline(value, color="C0", linestyle=style, linewidth=1, label=f"D {label}: {value:.3f}")
    shares.axhline(0.5, color="grey", linestyle="--", linewidth=1, label="a perfect G")
    for values, label, style in zip(np.reshape(distances, (-1, 2)).T, ("G", "its average"), ("o:", "o-")):
        quality.plot(range(1, len(values) + 1), values, style, label=label)
    quality.axhline(floor, color="grey", linestyle="--", linewidth=1, label="training faces")
    losses.set(title="Losses", xlabel="step", ylabel="cross-entropy")
    shares.set(title="Images that D judges rightly", xlabel="step", ylabel="share", ylim=(0, 1.02))
    quality.set(title="Distance to faces held out", xlabel="epoch", ylabel="sliced Wasserstein x1000", ylim=(0, None))
    for axis in (losses, shares, quality):
        axis.legend(fontsize="small")
    return figure


def animation(frames, milliseconds=400, rest=5, format="PNG"):
    """The bytes of an animated PNG or WEBP: frames, uint8 (height, width, 3), in a loop, the last rest times as long."""
    pictures, file = [Image.fromarray(frame) for frame in frames], io.BytesIO()
    pictures[0].save(file, format=format, save_all=True, append_images=pictures[1:], loop=0, lossless=True,
                     duration=[milliseconds] * (len(pictures) - 1) + [rest * milliseconds])
    return file.getvalue()


# --- Samples ----------------------------------------------------------------------------------------------------------

class ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays in lists and tuples and nothing that could run code."""

    def find_class(self, module, name):
        module = module.replace("numpy.core", "numpy._core")  # NumPy 1 and 2
        if (module, name) in {("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def load_samples(path):
    """The list of arrays in a run's train_samples.pkl, one an epoch. Raises ValueError if path holds anything else."""
    try:
        with open(path, "rb") as file:
            samples = ArraysOnly(file).load()
        if not isinstance(samples, list) or any(getattr(array, "dtype", None) != np.uint8 for array in samples):
            raise pickle.UnpicklingError("it does not hold a list of uint8 arrays")
        return samples
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from error
    except Exception as error:  # a pickle cut short or made up can raise anything
        raise ValueError(f"{path} is not a file of samples: {error}.") from error


# --- The kept generator -----------------------------------------------------------------------------------------------

def generator_files(weights, about):
    """{name of a file: bytes} of what load_generator reads: a Generator's weights, {name: tensor}, and about, a dict
    of z_size, conv_dim, image_size, probe (see probe_of) and whatever else is to be kept with them."""
    weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    return {"generator.safetensors": save(weights), "generator.json": json.dumps(about, indent=1).encode()}


def probe_of(network, z_size):
    """Eight pixels that network draws for one z: they tell whether other layers draw the same pictures."""
    with torch.no_grad():
        picture = network(torch.linspace(-1, 1, z_size)[None]).float().cpu()
    return [round(value, 4) for value in picture[0, :, ::8, ::8].flatten()[:8].tolist()]


def read_generator(folder, device="cpu"):
    """generator.json of folder, a dict, and the float32 weights of its generator.safetensors, {name: tensor}.

    Raises ValueError with one sentence if they are not a generator of the notebook."""
    try:
        about = json.loads(Path(folder, "generator.json").read_text())
        with safe_open(Path(folder, "generator.safetensors"), "pt") as file:
            w = {name: file.get_tensor(name).float().to(device) for name in file.keys()}
        stages = sum(name.endswith(".0.weight") for name in w)
        if w["FC.weight"].shape[1] != int(about["z_size"]) or 2 ** (stages + 1) != int(about["image_size"]):
            raise ValueError("its files do not belong together")
        return about, w
    except Exception as error:
        raise no_generator(folder, error) from error


def no_generator(folder, error):
    """The ValueError that says so of folder, with the error that told it as the reason."""
    return ValueError(f"{folder} does not hold a generator of this notebook ({type(error).__name__}: {error}).")


def directions(folder, count=8):
    """The unit vectors, float32 tensor (count, z_size), along which z changes the generator's first layer most.

    They are the right singular vectors of FC.weight, strongest first (Shen and Zhou 2021, Closed-form factorization),
    each with its component of largest size positive. Raises ValueError as read_generator does."""
    weight = read_generator(folder)[1]["FC.weight"].double()
    axes = torch.linalg.eigh(weight.T @ weight).eigenvectors.flip(1).T[:count]
    return (axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()).float()


def load_generator(folder, device="cpu"):
    """A function sample(count=64, seed=0, truncation=1.0, z=None) of the generator kept in folder.

    It gives uint8 faces (count, height, width, 3) of z, an array or tensor (count, z_size) of numbers in [-1, 1], or
    else of count z drawn with seed. truncation is a factor on z, and below 1 the faces move towards their mean. The
    layers are the notebook's Generator in eval mode, as plain functions. Raises ValueError as read_generator does,
    and if the layers are others; sample, if z has another shape."""
    about, w = read_generator(folder, device)
    z_size, stages = w["FC.weight"].shape[1], sum(name.endswith(".0.weight") for name in w)

    def forward(z):
        x = F.relu(F.linear(z, w["FC.weight"], w["FC.bias"]).unflatten(1, (-1, 2, 2)))
        for stage in range(1, stages + 1):
            x = F.conv_transpose2d(x, w[f"t_conv{stage}.0.weight"], stride=2, padding=1)
            if stage < stages:
                norm = [w[f"t_conv{stage}.1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
                x = F.relu(F.batch_norm(x, *norm))
        return torch.tanh(x)

    def sample(count=64, seed=0, truncation=1.0, z=None):
        if z is None:
            z = 2 * torch.rand(count, z_size, generator=torch.Generator().manual_seed(seed)) - 1
        z = truncation * torch.as_tensor(z, dtype=torch.float32)
        if z.shape[1:] != (z_size,):
            raise ValueError(f"z must have the shape (count, {z_size}), not {tuple(z.shape)}.")
        with torch.no_grad():
            return np.concatenate([to_uint8(forward(part.to(device))) for part in z.split(256)])

    try:
        found = probe_of(lambda z: forward(z.to(device)), z_size)
        same = np.allclose(found, about.get("probe", found), rtol=0, atol=0.03 * np.abs(found).max() + 5e-4)
    except Exception as error:  # a layer is missing or has another shape, the probe is no list of numbers
        raise no_generator(folder, error) from error
    if not same:
        raise ValueError(f"{folder} holds a generator with other layers than this notebook's: use its own code.")
    return sample


# --- Measures ---------------------------------------------------------------------------------------------------------

def laplacian_pyramid(images, smallest=16):
    """Images (count, 3, size, size) as their details at each scale down to smallest (Burt and Adelson 1983)."""
    taps = torch.tensor([1., 4., 6., 4., 1.]) / 16
    kernel = torch.outer(taps, taps).expand(3, 1, 5, 5)
    levels = []
    while images.shape[-1] > smallest:
        small = F.conv2d(F.pad(images, (2,) * 4, mode="reflect"), kernel, stride=2, groups=3)
        levels.append(images - F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False))
        images = small
    return levels + [images]


def sliced_wasserstein(a, b, patches=16, directions=128, seed=0):
    """Sliced Wasserstein distance x1000 between two sets of equally many images: 0 is equal.

    Random patches of 7x7 from each level of a Laplacian pyramid, normalised by channel, projected on random directions
    and sorted: the mean absolute difference, averaged over levels (Karras et al. 2018, Progressive Growing, 5)."""
    generator, distances = torch.Generator().manual_seed(seed), []
    both = [laplacian_pyramid(torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255) for x in (a, b)]
    for level_a, level_b in zip(*both):
        corner = torch.randint(0, level_a.shape[-1] - 6, (2, len(a) * patches), generator=generator)
        index = torch.arange(len(a)).repeat_interleave(patches)
        rows, columns = (corner[i][:, None] + torch.arange(7) for i in (0, 1))
        axes = F.normalize(torch.randn(directions, 7 * 7 * 3, generator=generator), dim=1)
        projected = []
        for level in (level_a, level_b):
            x = level.permute(0, 2, 3, 1)[index[:, None, None], rows[:, :, None], columns[:, None, :]]
            x = x.sub_(x.mean((0, 1, 2))).div_(x.std((0, 1, 2)) + 1e-6)
            projected.append(np.sort((axes @ x.flatten(1).T).numpy(), axis=1))
        distances.append(float(np.abs(projected[0] - projected[1]).mean()))
    return 1000 * sum(distances) / len(distances)


def rms(a, b):
    """Root mean square difference of pixel values in [0, 1] between each of a and the same of b."""
    return np.sqrt(((a.astype(np.float32) - b) ** 2).mean(axis=(1, 2, 3))) / 255


def pair_distances(images):
    """The rms of every pair of images: a tensor of count * (count - 1) / 2, in the order of torch.pdist."""
    x = torch.from_numpy(images.reshape(len(images), -1)).float() / 255
    return torch.pdist(x) / x.shape[1] ** 0.5


def close_radius(images):
    """The rms that 1 in 10,000 pairs of images is below (the birthday test: Arora and Zhang 2017)."""
    distances = pair_distances(images)
    return distances.kthvalue(max(1, len(distances) // 10_000)).values.item()


def closest_pairs(images, count):
    """The indices (2, count) of the closest pairs of images, the closest first."""
    order = pair_distances(images).argsort()[:count]
    return torch.triu_indices(len(images), len(images), 1)[:, order].numpy()


def nearest(queries, images):
    """For each query the index of the nearest of images and its rms."""
    q = torch.from_numpy(queries.reshape(len(queries), -1)).float() / 255
    best, indices = torch.full((len(q),), torch.inf), torch.zeros(len(q), dtype=torch.long)
    for start in range(0, len(images), 4096):  # as floats all of them would take four times the memory
        x = torch.from_numpy(images[start:start + 4096].reshape(-1, q.shape[1])).float() / 255
        distances, found = torch.cdist(q, x).min(dim=1)
        indices = torch.where(distances < best, start + found, indices)
        best = torch.minimum(best, distances)
    return indices.numpy(), best.numpy() / q.shape[1] ** 0.5
