"""plumbing/explore.py: ways and directions in z, and the explorer's widgets without a browser."""
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import helpers
from plumbing import explore
from plumbing.story import ROOT

NAMES = ("one", "two", "three")


def uniform(*shape, seed=0):
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


def draw(z):
    """A toy generator: the left half of each image shows the first number of z, the right half the second."""
    shades = ((z[:, :2] + 1) * 127.5).round().to(torch.uint8).numpy()
    return np.broadcast_to(shades.repeat(4, axis=1)[:, None, :, None], (len(z), 8, 8, 3)).copy()


def test_steps_are_taken_from_each_face():
    z = uniform(5, 3)
    rows = explore.stepped(draw, z, {"first": torch.tensor([1., 0, 0]), "second": torch.tensor([0., 1, 0])}, 0.5)
    assert list(rows) == ["faces", "first", "second"] and np.array_equal(rows["faces"], draw(z))
    for name, axis in (("first", [1., 0, 0]), ("second", [0, 1., 0])):
        assert np.array_equal(rows[name], draw((z + 0.5 * 3 ** -0.5 * torch.tensor(axis)).clamp(-1, 1)))


def test_directions_have_names():
    names = list(explore.named_directions(ROOT / "assets"))
    assert len(names) == 8 and names == helpers.read_generator(ROOT / "assets")[0]["directions"]
    for kept, number in (({}, 1), ({"directions": ["turns the head"]}, 2)):
        about, weights = helpers.read_generator(ROOT / "assets")
        del about["directions"]
        for name, content in helpers.generator_files(weights, about | kept).items():
            Path(name).write_bytes(content)
        found = explore.named_directions(".")
        assert list(found) == [*kept.get("directions", []), *(f"direction {n}" for n in range(number, 9))]
        assert torch.equal(torch.stack(list(found.values())), helpers.directions("."))


@pytest.mark.parametrize("factor, said", [(1, "same faces: True"), (-1, "same faces: False")])
def test_a_file_is_checked(capsys, factor, said):
    sample = helpers.load_generator(ROOT / "assets")
    explore.check_file(ROOT / "assets", lambda z: sample(z=factor * z))
    assert said in capsys.readouterr().out


def test_a_file_of_other_layers_is_named(capsys):
    explore.check_file("nowhere", None)
    assert "nowhere does not hold a generator of this notebook" in capsys.readouterr().out


def test_difference_finds_the_axis_that_a_value_depends_on():
    z, axis = uniform(4000, 10), torch.nn.functional.normalize(torch.arange(-4., 6.), dim=0)
    found = explore.difference(z, (z @ axis).numpy())
    assert found @ axis > 0.98 and found.norm() == pytest.approx(1)
    assert torch.allclose(explore.difference(z, -(z @ axis)), -found)


def test_moved_goes_by_standard_deviations_and_stays_in_the_range():
    axes = torch.eye(3)[:2]
    amounts = torch.tensor([[0., 0.], [1., -0.5], [9., 0.]])
    assert torch.allclose(explore.moved(torch.zeros(3), axes, amounts),
                          torch.tensor([[0, 0, 0], [3**-0.5, -(3**-0.5) / 2, 0], [1, 0, 0]]))
    assert uniform(10_000).std() == pytest.approx(3**-0.5, rel=0.02)


def test_strips():
    rows = explore.strips(draw, torch.zeros(3), dict(zip(NAMES, torch.eye(3))))
    assert list(rows) == list(NAMES) and {images.shape for images in rows.values()} == {(8, 8, 8, 3)}
    left, right = ({name: images[:, 0, x, 0].astype(int) for name, images in rows.items()} for x in (0, -1))
    assert (np.diff(left["one"])[1:-1] > 0).all() and left["one"][[0, -1]].tolist() == [0, 255]
    assert (right["one"] == 128).all() and (left["three"] == 128).all()


def test_points_on_the_way_are_as_uniform_as_its_ends():
    halfway = torch.stack([explore.between(*uniform(2, 100, seed=seed), 3)[1] for seed in range(400)])
    straight = torch.stack([uniform(2, 100, seed=seed).mean(0) for seed in range(400)])
    at_ends, on_the_way, on_the_line = (
        z.norm(dim=1).mean().item() for z in (uniform(400, 100, seed=999), halfway, straight))
    assert on_the_way == pytest.approx(at_ends, rel=0.01) and on_the_line == pytest.approx(at_ends / 2**0.5, rel=0.02)
    quantiles = torch.linspace(0.05, 0.95, 19)
    assert (halfway.flatten().quantile(quantiles) - (2 * quantiles - 1)).abs().max() < 0.02
    assert (straight.flatten().quantile(quantiles) - (2 * quantiles - 1)).abs().max() > 0.15


def test_a_way_arrives_at_both_ends():
    a, b = uniform(2, 20)
    a[0], b[0] = 1, -1  # the limits of the range
    way = explore.between(a, b, 9)
    assert torch.allclose(way[[0, -1]], torch.stack([a, b]), atol=2e-4) and way.abs().max() <= 1
    assert torch.allclose(explore.between(a, a, 4), a.expand(4, -1), atol=2e-4)
    assert explore.between(torch.zeros(20), b, 4).isfinite().all()


def test_a_walk_is_closed_and_even():
    ends = uniform(4, 100)
    way = explore.walk(ends, 8)
    assert way.shape == (32, 100) and torch.allclose(way[::8], ends, atol=2e-4)
    steps = (way - way.roll(1, 0)).norm(dim=1)
    assert steps.max() < 1.5 * steps.min()


def seen(image):
    """The pixels of an Image widget."""
    return np.asarray(Image.open(io.BytesIO(image.value)))


@pytest.fixture
def parts():
    """An explorer's sliders, truncation, seed, buttons, face and row."""
    top, row = explore.explorer(draw, dict(zip(NAMES, torch.eye(3)))).children
    controls, face = top.children
    *sliders, truncation, seed, buttons = controls.children
    return sliders, truncation, seed, buttons.children, face, row


def test_the_face_follows_the_sliders(parts):
    (one, two, three), truncation, seed, (another, *_), face, row = parts
    z = uniform(1, 3)
    assert np.array_equal(seen(face), draw(z)[0].repeat(32, 0).repeat(32, 1))
    one.value = 0.5
    z[0, 0] += 0.5 * 3**-0.5
    assert np.array_equal(seen(face)[::32, ::32], draw(z)[0])
    truncation.value = one.value = 0
    assert np.array_equal(seen(face)[::32, ::32], draw(0 * z)[0])
    truncation.value, two.value = 1, 2
    seed.value = 7
    assert two.value == 2 and not np.array_equal(seen(face)[::32, ::32], draw(uniform(1, 3, seed=7))[0])
    another.click()
    assert seed.value == 8 and two.value == 0
    assert np.array_equal(seen(face)[::32, ::32], draw(uniform(1, 3, seed=8))[0])


def test_two_faces_are_kept_with_the_way_between_them(parts):
    _, _, seed, (_, keep_a, keep_b), face, row = parts

    def ends():
        pixels = seen(row)[8:-8:8, 8:-8:8]  # a white line around each face is as wide as one of its pixels
        return pixels[:, :8], pixels[:, -8:]

    assert all(map(np.array_equal, ends(), (draw(uniform(1, 3, seed=s))[0] for s in (0, 1))))
    seed.value = 5
    keep_b.click()
    assert np.array_equal(ends()[1], seen(face)[::32, ::32]) and np.array_equal(ends()[0], draw(uniform(1, 3))[0])
    keep_a.click()
    assert np.array_equal(*ends())


def test_the_seed_is_that_of_the_kept_generator():
    state = torch.get_rng_state()
    sample, drawn = helpers.load_generator(ROOT / "assets"), []
    directions = dict(zip(NAMES, helpers.directions(ROOT / "assets")))
    explore.explorer(lambda z: drawn.append(z) or sample(len(z)), directions)
    assert torch.equal(drawn[0], uniform(1, 100)) and torch.equal(torch.get_rng_state(), state)
