"""helpers.py: pictures, samples, the kept generator and measures."""
import io
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Calls, encoded, pixels, refused
from PIL import Image

import helpers
from plumbing import files
from plumbing.story import ROOT, definitions

NOTEBOOK = definitions()
ABOUT = {"z_size": 20, "conv_dim": 4, "image_size": 32}


def keep(G, folder=".", **about):
    for name, content in helpers.generator_files(G.state_dict(), ABOUT | about).items():
        files.write(Path(folder) / name, content)


# --- Pictures ---------------------------------------------------------------------------------------------------------

def test_to_uint8():
    images = torch.tensor([-2., -1., 0., 1., 2.]).view(5, 1, 1, 1).expand(5, 3, 2, 4)
    assert helpers.to_uint8(images).shape == (5, 2, 4, 3)
    assert helpers.to_uint8(images)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]
    every = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert np.array_equal(helpers.to_uint8(every / 127.5 - 1)[0, :, :, 0].ravel(), np.arange(256))


def test_as_pictures():
    Path("images").mkdir()
    for number in range(11):
        Image.fromarray(pixels(32, 32, 3, seed=number)).save(f"images/{number:02}.png")
    train, test = NOTEBOOK.get_dataloader(2, 32, "images")
    assert np.array_equal(helpers.as_pictures(train, 3), np.stack([pixels(32, 32, 3, seed=s) for s in (1, 2, 3)]))
    assert len(helpers.as_pictures(train, 99)) == 9
    assert np.array_equal(helpers.as_pictures(test, 99), np.stack([pixels(32, 32, 3, seed=s) for s in (0, 8)]))


def test_grids_and_figures():
    images = pixels(10, 32, 32, 3)
    assert helpers.grid(images).shape == (2 * 33 + 1, 8 * 33 + 1, 3)
    figure = helpers.show_faces(images, title="faces")
    assert figure.get_suptitle() == "faces"
    assert np.array_equal(figure.axes[0].images[0].get_array(), helpers.grid(images))
    one, two = helpers.show_rows({"a": images, "b": images[:3]}, columns=5).axes
    assert (one.get_ylabel(), two.get_ylabel()) == ("a", "b")
    assert np.array_equal(two.images[0].get_array(), helpers.grid(images[:3], 5))


def test_curves_and_histograms():
    left, right = helpers.show_curves({"a": ([1, 2], {"up": [1, 2], "down": [2, 1]}, "x", "y"),
                                       "b": ([1, 2], {"level": [1, 1]}, "steps", "loss")}).axes
    assert [line.get_label() for line in left.lines] == ["up", "down"] and right.get_xlabel() == "steps"
    assert list(left.lines[1].get_ydata()) == [2, 1] and right.get_title() == "b"
    axis, = helpers.show_histograms({"brightness": {"data": np.arange(80), "generated": np.full(7, 40)}}).axes
    assert axis.get_xlabel() == "brightness" and axis.get_ylabel() == "% of faces"
    tops = [patch.get_xy()[:, 1].max() for patch in axis.patches]
    assert tops == pytest.approx([2.5, 100])  # 80 values in 40 bins; all in one


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_animation(format):
    moving = Image.open(io.BytesIO(helpers.animation(list(pixels(3, 32, 32, 3)), 80, rest=4, format=format)))
    assert moving.format == format and moving.n_frames == 3 and moving.info["loop"] == 0
    for number, duration in enumerate((80, 80, 320)):
        moving.seek(number)
        assert np.array_equal(moving.convert("RGB"), pixels(3, 32, 32, 3)[number])
        assert moving.info["duration"] == duration


def test_curves_of_a_run():
    steps = np.arange(40.0)
    columns = {"g_loss": steps, "d_loss": 2 * steps, "real_accuracy": 0 * steps + 0.25, "fake_accuracy": 0 * steps + 1}
    losses, shares, quality = helpers.show_training(columns, {"always right": 0.325}, [[9, 5], [7, 4]], 3).axes
    curves = {line.get_label(): line.get_xydata() for axis in (losses, shares, quality) for line in axis.lines}
    assert np.allclose(curves["generator"], [[step, step - 0.5] for step in range(1, 40)])  # means of two steps
    assert np.allclose(curves["discriminator"][:, 1], [2 * step - 1 for step in range(1, 40)])
    assert set(curves["real"][:, 1]) == {0.25} and set(curves["generated"][:, 1]) == {1}
    assert set(curves["D always right: 0.325"][:, 1]) == {0.325} and set(curves["training faces"][:, 1]) == {3}
    assert curves["G"].tolist() == [[1, 9], [2, 7]] and curves["its average"].tolist() == [[1, 5], [2, 4]]
    assert helpers.show_training(columns, {}, [], 3)  # interrupted in its first epoch


# --- Samples ----------------------------------------------------------------------------------------------------------

def test_samples_of_either_numpy_come_back():
    samples = [pixels(4, 8, 8, 3, seed=s) for s in (0, 1)] + [np.asfortranarray(pixels(2, 4, 4, 3))]
    content = pickle.dumps(samples, protocol=3)  # in protocol 4 a name carries its length
    for core in (b"numpy.core", b"numpy._core"):
        Path("samples.pkl").write_bytes(content.replace(b"numpy._core", core))
        assert all(map(np.array_equal, helpers.load_samples("samples.pkl"), samples))


@pytest.mark.parametrize("content", [
    b"", b"hello", pickle.dumps([pixels(4, 8, 8, 3)])[:100], pickle.dumps(Calls(os.system, "touch hacked")),
    pickle.dumps([[Calls(exec, "open('hacked', 'w')")]]), b"cos\nsystem\n(S'touch hacked'\ntR.",
    b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__new__\x93.", pickle.dumps(Calls(getattr, np.ndarray, "tofile")),
    pickle.dumps([np.zeros((4, 8, 8, 3))]), pickle.dumps(pixels(4, 8, 8, 3)), pickle.dumps([[1, 2]]),
    b"cnumpy\nndarray\n((I1000000000000000\ntS'f8'\ntR."],
    ids=["empty", "text", "cut", "os.system", "exec", "old protocol", "dotted name", "getattr", "floats",
         "not a list", "not arrays", "a petabyte"])
def test_files_that_are_not_samples(content):
    Path("samples.pkl").write_bytes(content)
    refused(lambda: helpers.load_samples("samples.pkl"), "samples.pkl is not a file of samples")
    assert os.listdir() == ["samples.pkl"]


def test_no_samples():
    refused(lambda: helpers.load_samples("absent.pkl"), "absent.pkl cannot be read")


# --- The kept generator -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("image_size", [32, 64])
def test_the_file_draws_what_the_network_draws(image_size):
    torch.manual_seed(0)
    G = NOTEBOOK.Generator(20, 4, image_size)
    for _ in range(3):
        G(torch.rand(16, 20))  # so that the running statistics are not those of the start
    keep(G.eval(), image_size=image_size, epochs=3)
    z = 2 * torch.rand(300, 20, generator=torch.Generator().manual_seed(5)) - 1
    with torch.no_grad():
        direct = helpers.to_uint8(G(0.5 * z))
    faces = helpers.load_generator(".")(300, seed=5, truncation=0.5)
    assert faces.shape == (300, image_size, image_size, 3) and faces.dtype == np.uint8
    assert np.abs(faces.astype(int) - direct).max() <= 1
    assert json.loads(Path("generator.json").read_text())["epochs"] == 3


@pytest.mark.parametrize("change", [lambda G: G, lambda G: setattr(G, "forward", lambda z: torch.tanh(G.t_conv4(
    torch.relu(G.t_conv3(torch.relu(G.t_conv2(torch.relu(G.t_conv1(G.FC(z).unflatten(1, (-1, 2, 2)))))))))))],
    ids=["as it is", "no ReLU after FC"])
def test_a_generator_with_other_layers_is_refused(change):
    torch.manual_seed(0)
    G = NOTEBOOK.Generator(20, 16).train()
    with torch.no_grad():
        for _ in range(50):
            G(2 * torch.rand(16, 20) - 1)
    other = change(G.eval()) is None
    keep(G, probe=helpers.probe_of(G, 20), conv_dim=16)
    if other:
        refused(lambda: helpers.load_generator("."), ". holds a generator with other layers than this notebook's")
    else:
        assert helpers.load_generator(".")(3).shape == (3, 32, 32, 3)


def test_faces_of_a_z_that_is_given():
    torch.manual_seed(0)
    keep(NOTEBOOK.Generator(20, 4).eval())
    sample = helpers.load_generator(".")
    z = 2 * torch.rand(5, 20, generator=torch.Generator().manual_seed(3)) - 1
    for given in (z, z.numpy(), z.double().numpy(), z.tolist(), z.clone().requires_grad_()):
        assert np.array_equal(sample(z=given), sample(5, seed=3))
    assert np.array_equal(sample(z=z, truncation=0.5), sample(5, seed=3, truncation=0.5))
    assert sample(0).shape == (0, 32, 32, 3)
    assert not np.array_equal(sample(z=-z), sample(z=z)) and np.array_equal(sample(), sample(64, seed=0))
    for wrong in (z[0], z[:, :19], z[None], 0.5):
        refused(lambda: sample(z=wrong), f"z must have the shape (count, 20), not {tuple(np.shape(wrong))}")


def test_directions():
    refused(lambda: helpers.directions("."), ". does not hold a generator of this notebook")
    torch.manual_seed(0)
    G = NOTEBOOK.Generator(20, 4)
    axes, wanted = torch.linalg.qr(torch.randn(20, 20))[0].T, torch.tensor([9.0, 8, 7, 6, 5, 4, 3, 2] + [1] * 12)
    G.FC.weight.data = torch.linalg.qr(torch.randn(G.FC.out_features, 20))[0] * wanted @ axes  # singular values: wanted
    keep(G)
    found = helpers.directions(".")
    assert found.dtype == torch.float32 and found.shape == (8, 20)
    largest = axes[:8].gather(1, axes[:8].abs().argmax(1, keepdim=True))
    assert torch.allclose(found, axes[:8] * largest.sign(), atol=1e-5)
    assert (found.max(1).values >= -found.min(1).values).all()
    assert torch.equal(helpers.directions(".", 3), found[:3]) and len(helpers.directions(".", 99)) == 20
    assert torch.allclose((G.FC.weight @ found.T).norm(dim=0), wanted[:8])  # what a step does to the first layer


def test_helpers_are_enough_to_draw_faces():
    keep(NOTEBOOK.Generator(20, 4))
    Path("helpers.py").write_bytes((ROOT / "helpers.py").read_bytes())
    lines = "import helpers\nsample = helpers.load_generator('.')\nprint(sample(64, seed=0).shape)"
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, env=alone)
    assert done.stdout == "(64, 32, 32, 3)\n", done.stderr


@pytest.mark.parametrize("change", [
    lambda w: w.pop("FC.bias"), lambda w: w.pop("t_conv2.1.weight"), lambda w: w.update({"FC.weight": w["FC.weight"][:9]}),
    lambda w: w.update({"t_conv2.0.weight": w["t_conv2.0.weight"][:3]}), [1, 2, 3], "x", None],
    ids=["no bias", "no norm", "short FC", "short layer", "short probe", "text", "null"])
def test_weights_and_probes_that_do_not_fit(change):
    G = NOTEBOOK.Generator(20, 4).eval()
    weights, about = G.state_dict(), {"z_size": 20, "conv_dim": 4, "image_size": 32, "probe": helpers.probe_of(G, 20)}
    if callable(change):
        change(weights)
    else:
        about["probe"] = change
    for name, content in helpers.generator_files(weights, about).items():
        Path(name).write_bytes(content)
    refused(lambda: helpers.load_generator("."), ". does not hold a generator of this notebook (")


def test_broken_generators():
    def refuse():
        refused(lambda: helpers.load_generator("."), ". does not hold a generator of this notebook")

    refuse()
    keep(NOTEBOOK.Generator(20, 4, 64), image_size=32)
    refuse()
    keep(NOTEBOOK.Generator(20, 4, 64), image_size=64)
    about, weights = Path("generator.json").read_text(), Path("generator.safetensors").read_bytes()
    for change in ({"z_size": 21}, {"z_size": None}, {"image_size": 128}, {"image_size": "big"}):
        Path("generator.json").write_text(json.dumps(json.loads(about) | change))
        refuse()
    for text in ("", "[]", "{}", "{"):
        Path("generator.json").write_text(text)
        refuse()
    Path("generator.json").write_text(about)
    for content in (b"", weights[:-1], bytes(1000), encoded()):
        Path("generator.safetensors").write_bytes(content)
        refuse()


# --- Measures ---------------------------------------------------------------------------------------------------------

def smooth_images(count, seed=0):
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    images = torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")
    images += 0.05 * torch.rand(images.shape, generator=torch.Generator().manual_seed(seed + 1))
    return helpers.to_uint8(2 * images.clamp(0, 1) - 1)


def test_sliced_wasserstein():
    a, b = smooth_images(64), smooth_images(64, seed=10)
    assert helpers.sliced_wasserstein(a, a) == 0
    floor = helpers.sliced_wasserstein(a, b)
    assert floor > 0 and helpers.sliced_wasserstein(b, a) == pytest.approx(floor, rel=0.25)
    noisy = [np.clip(b + np.random.default_rng(0).normal(0, s, b.shape), 0, 255).astype(np.uint8) for s in (10, 40)]
    blurred = [helpers.to_uint8(torch.nn.functional.avg_pool2d(
        torch.from_numpy(b).permute(0, 3, 1, 2) / 127.5 - 1, k, 1, k // 2, count_include_pad=False)) for k in (3, 7)]
    for less, more in (noisy, blurred):
        assert floor < helpers.sliced_wasserstein(less, a) < helpers.sliced_wasserstein(more, a)
    assert math.isfinite(helpers.sliced_wasserstein(np.zeros_like(a), a))


def test_nearest():
    images = pixels(20, 32, 32, 3)
    index, distance = helpers.nearest(images[[7, 3]], images)
    assert index.tolist() == [7, 3] and np.abs(distance).max() < 1e-3
    white, black = np.full((1, 2, 2, 3), 255, np.uint8), np.zeros((1, 2, 2, 3), np.uint8)
    assert helpers.nearest(white, black)[1] == helpers.rms(white, black) == pytest.approx(1)


def test_pairs():
    images = smooth_images(200)
    distances = helpers.pair_distances(images)
    assert len(distances) == 200 * 199 / 2
    assert distances[1] == pytest.approx(helpers.rms(images[:1], images[2:3])[0], rel=1e-4)
    radius = helpers.close_radius(images)
    assert (distances < radius).sum() == 0 and (distances <= radius).sum() == 1  # 1 in 10,000 of 19,900
    images[77], images[5] = images[30], np.clip(images[6].astype(int) + 1, 0, 255)
    assert helpers.closest_pairs(images, 2).T.tolist() == [[30, 77], [5, 6]]
