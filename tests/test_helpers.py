"""helpers.py, function by function, with real processes, servers and files where the promise is about them."""
import copy
import errno
import functools
import hashlib
import http.server
import io
import json
import math
import multiprocessing
import os
import pickle
import platform
import signal
import socket
import sys
import threading
import time
import zipfile
from pathlib import Path, PurePath
from unittest import mock
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

import helpers
from notebook import definitions
from test_notebook import make_faces

QUIET = settings(derandomize=True, deadline=None, max_examples=100)
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
NOTEBOOK = definitions()
DEFAULTS = {name: getattr(NOTEBOOK, name) for name in helpers.RULES}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test in a folder of its own: caches are written relative to the current one."""
    monkeypatch.chdir(tmp_path)


def child(function, *arguments):
    """A process that runs function and is of this test's state: forked, so that it need not import torch again."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def folder_of_images(path, count=5, size=64, suffix=".png"):
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(pixels(size, size, 3, seed=number)).save(path / f"{number:04}{suffix}")
    return path


def zip_of(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def png(seed=0, size=8):
    file = io.BytesIO()
    Image.fromarray(pixels(size, size, 3, seed=seed)).save(file, "PNG")
    return file.getvalue()


def leftovers(folder="."):
    return [str(p) for p in Path(folder).rglob("*") if "partial" in p.name and not p.name.endswith(".lock")]


# --- Parameters -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("value, kind, expected", [
    (" 64 ", int, 64), ("1e3", int, 1000), (1e3, int, 1000), (64.0, int, 64), ("1_000", int, 1000), ("-3", int, -3),
    ("9007199254740993", int, 9007199254740993), ("1e-3", float, 0.001), (1, float, 1.0), (" .5", float, 0.5),
    (np.float64(0.5), float, 0.5), ("false", bool, False), (" True ", bool, True), (True, bool, True), ("x", str, "x"),
    (torch.device("cuda", 1), str, "cuda:1"), (PurePath("a/b"), str, str(PurePath("a/b")))])
def test_convert(value, kind, expected):
    result = helpers.convert(value, kind)
    assert result == expected and type(result) is kind


@pytest.mark.parametrize("kind", [bool, int, float, str])
@pytest.mark.parametrize("value", [None, [], {}, b"1", math.nan, math.inf, 1j, object(), int])
def test_convert_refuses(value, kind):
    with pytest.raises(ValueError):
        helpers.convert(value, kind)


@QUIET
@given(st.integers(-2**63 + 1, 2**63 - 1))
def test_integers_survive_text(number):
    assert helpers.convert(f" {number}\n", int) == helpers.convert(number, int) == number


@QUIET
@given(st.floats(-1e18, 1e18))
def test_floats_survive_text(number):
    assert helpers.convert(repr(number), float) == helpers.convert(number, float) == number


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
    | st.integers(10**300, 10**400) | st.sampled_from(["1e3", "-0", "0x10", " ", "true", "cuda:9", "nan", "1" * 5000]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)


@QUIET
@given(st.sampled_from(list(helpers.RULES)), anything)
def test_any_value_is_converted_or_refused(name, value):
    kind = helpers.RULES[name][0]
    try:
        checked = helpers.check_parameters({**DEFAULTS, name: value})
    except ValueError as error:
        assert str(error).startswith(f"{name} must be ") and str(error).endswith(".") and "\n" not in str(error)
    else:
        assert type(checked[name]) is kind and helpers.check_parameters(checked) == checked


def test_defaults_are_accepted_with_a_chosen_device():
    assert isinstance(DEFAULTS["device"], torch.device)
    assert helpers.check_parameters(DEFAULTS) == {**DEFAULTS, "device": "cpu"}


def test_what_papermill_injects():
    checked = helpers.check_parameters({**DEFAULTS, "resume": "false", "d_lr": "1e-3", "n_epochs": 1e3, "z_size": "64"})
    assert [checked[n] for n in ("resume", "d_lr", "n_epochs", "z_size")] == [False, 0.001, 1000, 64]


def test_each_wrong_parameter_gets_a_sentence():
    with pytest.raises(ValueError) as error:
        helpers.check_parameters({**DEFAULTS, "batch_size": "abc", "beta1": 1})
    assert str(error.value) == ("batch_size must be a whole number, 4 or more; "
                                "it is 'abc'. beta1 must be a number, from 0 to less than 1; it is 1.")


def test_fid_without_its_package_is_refused(monkeypatch):
    assert helpers.check_parameters({**DEFAULTS, "fid": True})["fid"]
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match="^fid is true and needs a package: pip install torch-fidelity"):
        helpers.check_parameters({**DEFAULTS, "fid": True})


def test_unknown_injected_names_are_refused():
    cells = ["", "batch_sise = 1", "# Parameters\nbatch_sise = 64\nseed = 1\n", "batch = 1"]
    with pytest.raises(ValueError, match="^batch_sise is no parameter of this notebook; there are dataset, "):
        helpers.check_parameters({**DEFAULTS, "In": cells})
    for harmless in ("# Parameters\n%time x = 1", "# Parameters\nseed, (a, b) = 1, (2, 3)\nx: int = 1\nprint()"):
        assert helpers.check_parameters({**DEFAULTS, "In": [harmless]})


# --- Devices ----------------------------------------------------------------------------------------------------------

@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_keep_freed_memory():
    import resource

    def faults(rounds=20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(rounds):
            tensors = [torch.ones(2**21) for _ in range(3)]  # 8 MiB each, 2,048 pages of 4 KiB
            del tensors
        return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / rounds

    def in_a_process():
        torch.set_num_threads(1)  # the parent's threads were not forked
        by_default = faults()
        helpers.keep_freed_memory()
        faults(1)
        Path("faults.json").write_text(json.dumps([by_default, faults()]))

    process = child(in_a_process)
    process.join(60)
    by_default, kept = json.loads(Path("faults.json").read_text())
    assert kept < by_default / 10


def test_keep_freed_memory_elsewhere(monkeypatch):
    for error in (TypeError, OSError):
        monkeypatch.setattr(helpers.ctypes, "CDLL", mock.Mock(side_effect=error))
        helpers.keep_freed_memory()
    monkeypatch.setattr(helpers.ctypes, "CDLL", mock.Mock(return_value=object()))
    helpers.keep_freed_memory()


def test_choose_device(monkeypatch):
    assert helpers.choose_device("cpu").type == "cpu"
    assert helpers.choose_device().type in ("cuda", "mps", "xpu", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:1", "auto:1", "tpu"):
        with pytest.raises(ValueError, match=f"device is '{name}', and PyTorch finds none here"):
            helpers.choose_device(name)
    with pytest.raises(ValueError, match="finds no such device"):
        helpers.choose_device("cpu:x")


def test_choose_precision(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert helpers.choose_precision("bf16", cpu) == ("bf16", "as asked")
    assert helpers.speed_up(cpu) > 0
    for can, gain, expected in (({"amx_bf16": True}, 2.0, "bf16"), ({"avx512_bf16": True}, 0.6, "fp32"),
                                ({"avx2": True}, 2.0, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can, raising=False)
        monkeypatch.setattr(helpers, "speed_up", lambda device: gain)
        assert helpers.choose_precision("auto", cpu)[0] == expected
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: "amx_bf16" in can)
        assert helpers.choose_precision("auto", cuda)[0] == expected
    assert helpers.choose_precision("auto", torch.device("mps"))[0] == "fp32"


@pytest.mark.parametrize("image_size", [32, 64])
def test_products_are_the_convolutions_that_they_replace(image_size, monkeypatch):
    called = []
    for name in ("small_conv", "small_deconv"):
        monkeypatch.setattr(helpers, name, lambda *arguments, name=name, function=getattr(helpers, name):
                            called.append(name) or function(*arguments))
    module = definitions()
    D, G = module.Discriminator(4, image_size), module.Generator(10, 4, image_size)
    z, results = torch.randn(5, 10), []
    for change in (lambda network: network, lambda network: copy.deepcopy(helpers.small_as_products(network))):
        d, g = (change(network).to(memory_format=torch.channels_last) for network in (D, G))
        images = g(z)
        out = d(images)
        gradients = torch.autograd.grad(out.sum(), [*d.parameters(), *g.parameters()])
        results.append([images, out, *gradients])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * a.abs().max().item())
    assert called == ["small_deconv", "small_conv"]  # one layer of each network, and none before the change


def test_a_copy_of_products_uses_weights_of_its_own():
    layer = helpers.small_as_products(torch.nn.Conv2d(3, 2, 4, 2, 1, bias=False))
    twin, x = copy.deepcopy(layer), torch.ones(1, 3, 4, 4)
    torch.nn.init.zeros_(twin.weight)
    assert twin(x).abs().max() == 0 < layer(x).abs().max()


@pytest.mark.parametrize("layer", [
    torch.nn.Conv2d(3, 2, 4, 2, 1), torch.nn.Conv2d(3, 2, 3, 1, 1, bias=False),
    torch.nn.Conv2d(4, 2, 4, 2, 1, groups=2, bias=False), torch.nn.ConvTranspose2d(3, 2, 4, 2, 1)],
    ids=["bias", "kernel of 3", "groups", "transposed, bias"])
def test_other_layers_stay_convolutions(layer):
    assert "forward" not in vars(helpers.small_as_products(layer))


def test_other_sizes_stay_convolutions():
    for kind in (torch.nn.Conv2d, torch.nn.ConvTranspose2d):
        layer = kind(3, 2, 4, 2, 1, bias=False)
        x = torch.rand(2, 3, 6, 8)
        before = layer(x)
        assert torch.equal(helpers.small_as_products(layer)(x), before)


def test_versions_and_device_name(monkeypatch):
    assert helpers.versions()["torch"] == torch.__version__
    assert helpers.device_name(torch.device("cpu")).endswith("threads")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    assert helpers.device_name(torch.device("cuda")) == "a card"

    def no_file(*_):
        raise OSError
    monkeypatch.setattr("builtins.open", no_file)
    assert helpers.device_name(torch.device("cpu")).endswith("threads")


# --- Files ------------------------------------------------------------------------------------------------------------

def write(path, content):
    with helpers.whole_file(path) as file:
        file.write(content)


def test_whole_file_replaces():
    for content in (b"old", b"new"):
        write("file", content)
        assert Path("file").read_bytes() == content
    assert os.listdir() == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, RuntimeError])
def test_whole_file_leaves_nothing_when_its_writer_fails(error):
    write("file", b"old")
    with pytest.raises(error), helpers.whole_file("file") as file:
        file.write(b"new")
        raise error
    assert Path("file").read_bytes() == b"old" and os.listdir() == ["file"]


def test_no_file_of_numbers_that_json_has_not():
    with pytest.raises(ValueError):
        helpers.save_json("file", {"x": math.nan})
    assert os.listdir() == []
    helpers.save_json("file", {"x": 1})
    assert json.loads(Path("file").read_text()) == {"x": 1}


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_disk_full(monkeypatch, function):
    write("file", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError, match=r"^file cannot be written \(No space left on device\); what was there before"):
        write("file", b"new")
    assert Path("file").read_bytes() == b"old" and os.listdir() == ["file"]


def write_beyond_the_limit(what):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        if what == "checkpoint":
            helpers.save_checkpoint("file", {"D": torch.nn.Linear(100, 100)}, {})
        else:
            helpers.save_samples("file", [pixels(100, 100, 3)])
    except OSError as error:
        os._exit(0 if str(error).startswith("file cannot be written (File too large); ") else 2)
    os._exit(1)


@posix
@pytest.mark.parametrize("what", ["checkpoint", "samples"])
def test_real_limit(what):
    write("file", b"old")
    process = child(write_beyond_the_limit, what)
    process.join(60)
    assert process.exitcode == 0
    assert Path("file").read_bytes() == b"old" and os.listdir() == ["file"]


@pytest.mark.parametrize("path", ["missing/file", "file/file", "folder"])
def test_no_place_for_the_file(path):
    Path("file").touch()
    Path("folder").mkdir()
    with pytest.raises(OSError, match=rf"^{path} cannot be written \("):
        write(path, b"new")
    assert sorted(os.listdir()) == ["file", "folder"] and not leftovers()


def test_folder_removed_in_mid_run():
    Path("run").mkdir()
    with pytest.raises(OSError, match="cannot be written"), helpers.whole_file("run/file") as file:
        os.unlink(file.name)
        os.rmdir("run")
    assert os.listdir() == []


def write_forever(path, size):
    for value in range(10**9):
        write(path, bytes([value % 256]) * size)


@posix
def test_kill_leaves_the_old_or_the_new_file():
    write("file", b"\0" * 300_000)
    for attempt in range(8):
        process = child(write_forever, "file", 300_000)
        time.sleep(0.01 + 0.007 * attempt)
        process.kill()
        process.join()
        content = Path("file").read_bytes()
        assert len(content) == 300_000 and content == content[:1] * 300_000
    for partial in leftovers():
        os.utime(partial, (0, 0))
    fresh = Path("file.0123.partial")
    fresh.touch()
    write("file", b"new")
    assert leftovers() == [str(fresh)]


def write_often(path, value):
    for _ in range(30):
        write(path, bytes([value]) * 100_000)


@posix
def test_two_writers_at_once():
    processes = [child(write_often, "file", value) for value in (1, 2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    content = Path("file").read_bytes()
    assert len(content) == 100_000 and len(set(content)) == 1 and os.listdir() == ["file"]


def test_samples_come_back():
    samples = [pixels(4, 8, 8, 3, seed=s) for s in (0, 1)] + [np.asfortranarray(pixels(2, 4, 4, 3))]
    helpers.save_samples("samples.pkl", samples)
    assert all(np.array_equal(a, b) for a, b in zip(helpers.load_samples("samples.pkl"), samples, strict=True))


def test_samples_of_either_numpy():
    samples = [pixels(4, 8, 8, 3)]
    content = pickle.dumps(samples, protocol=4)
    for core in (b"numpy.core", b"numpy._core"):
        ours = b"numpy._core" if b"numpy._core" in content else b"numpy.core"
        old, new = ours + b".multiarray", core + b".multiarray"
        other = content.replace(bytes([len(old)]) + old, bytes([len(new)]) + new)
        frame = 11  # after the two bytes of the protocol and nine of the frame, whose length changes with the name
        other = other[:3] + (len(other) - frame).to_bytes(8, "little") + other[frame:]
        Path("samples.pkl").write_bytes(other)
        assert np.array_equal(helpers.load_samples("samples.pkl")[0], samples[0])


# --- Data: downloads --------------------------------------------------------------------------------------------------

GOOD = b"the right file" * 1000


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/garbage":
            self.wfile.write(b"no HTTP at all\r\n")
            return
        self.send_response({"/missing": 404}.get(self.path, 200))
        self.send_header("Content-Length", str(len(GOOD) + (1000 if self.path == "/short" else 0)))
        self.end_headers()
        self.wfile.write(GOOD)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_download(server, capfd):
    path, sha256 = Path("data/file.zip"), hashlib.sha256(GOOD).hexdigest()
    assert helpers.download(f"{server}/good", path, sha256) == path
    assert path.read_bytes() == GOOD and os.listdir("data") == ["file.zip"]
    assert capfd.readouterr().err == ""  # a progress bar is for terminals
    assert helpers.download("http://127.0.0.1:9/not/asked/again", path, sha256) == path
    path.write_bytes(GOOD[:-1])
    with pytest.raises(ValueError, match="file.zip is not the file at .* move it away"):
        helpers.download(f"{server}/good", path, sha256)
    assert path.read_bytes() == GOOD[:-1]


@pytest.mark.parametrize("name", ["wrong", "short", "missing", "garbage"])
def test_download_fails(server, name):
    sha256 = hashlib.sha256(GOOD if name != "wrong" else b"").hexdigest()
    if name == "short":
        sha256 = hashlib.sha256(GOOD + b"x").hexdigest()
    with pytest.raises(OSError, match=f"^http.*/{name} could not be downloaded .*; try again, or give the path"):
        helpers.download(f"{server}/{name}", Path("data/file.zip"), sha256)
    assert os.listdir("data") == []


def test_download_without_a_server_or_a_place():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/", "no-url"):
        with pytest.raises(OSError, match="could not be downloaded"):
            helpers.download(url, Path("data/file.zip"), "0")
    Path("taken").touch()
    with pytest.raises(OSError, match="could not be downloaded"):
        helpers.download("http://127.0.0.1:9/", Path("taken/file.zip"), "0")


def test_prepare_data(server):
    images = folder_of_images(Path("images"), 2)
    assert helpers.prepare_data("images") == images and helpers.prepare_data(images) == images
    for path in ("absent", "~nobody-of-that-name/x", "a" * 5000, "nul\0"):
        with pytest.raises(FileNotFoundError, match="does not exist .* give a zip file, a folder of images or"):
            helpers.prepare_data(path)
    content = io.BytesIO()
    zip_of(content, {"faces/1.png": png()})
    path = Path("data/processed-celeba-small.zip")
    path.parent.mkdir()
    path.write_bytes(content.getvalue())
    sha256 = hashlib.sha256(content.getvalue()).hexdigest()
    assert len(helpers.load_images(helpers.prepare_data("celeba", url=f"{server}/good", sha256=sha256), 32)) == 1


# --- Data: archives ---------------------------------------------------------------------------------------------------

def test_unzip_takes_images_only_and_once(monkeypatch):
    archive = zip_of("faces.zip", {"a/1.png": png(1), "a/b/2.JPG": png(2), "a/.DS_Store": b"", "read.me": b"",
                                   "__MACOSX/a/._1.png": b"", "a/": b""})
    folder = helpers.unzip(archive)
    assert folder.parent == Path("data") and folder.name.startswith("faces-")
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*")) == ["a/1.png", "a/b/2.JPG"]
    monkeypatch.setattr(zipfile.ZipFile, "extractall", None)
    assert helpers.unzip(archive) == folder
    assert len(helpers.load_images(folder, 32)) == 2


def test_another_zip_of_the_same_name_gets_another_folder():
    first = helpers.unzip(zip_of("faces.zip", {"1.png": png(1)}))
    second = helpers.unzip(zip_of("faces.zip", {"1.png": png(2)}))
    assert first != second and first.is_dir() and second.is_dir()


def slow_unzip(seconds, path):
    extract = zipfile.ZipFile._extract_member
    zipfile.ZipFile._extract_member = lambda *a: (time.sleep(seconds), extract(*a))[1]
    helpers.unzip(path)


@posix
def test_kill_while_unpacking_and_then_again():
    path = zip_of("faces.zip", {f"{n}.png": png(n) for n in range(100)})
    process = child(slow_unzip, 0.01, path)
    while not list(Path("data").glob(".*/5.png")):
        time.sleep(0.001)
    process.kill()
    process.join()
    assert leftovers() and not list(Path("data").glob("faces-*"))
    folder = helpers.unzip(path)
    assert len(list(folder.iterdir())) == 100 and not leftovers("data")


@posix
def test_two_processes_unpack_at_once():
    path = zip_of("faces.zip", {f"{n}.png": png(n) for n in range(50)})
    processes = [child(slow_unzip, 0.002, path) for _ in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    (folder,) = Path("data").glob("faces-*")
    assert len(list(folder.iterdir())) == 50 and not leftovers()


def test_no_space_while_unpacking(monkeypatch):
    path = zip_of("faces.zip", {f"{n}.png": png(n) for n in range(5)})

    def full(*arguments):
        if "2.png" in arguments[1].filename:
            raise OSError(errno.ENOSPC, "No space left on device")
        return extract(*arguments)
    extract = zipfile.ZipFile._extract_member
    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"faces.zip cannot be unpacked into data \(No"):
        patch.setattr(zipfile.ZipFile, "_extract_member", full)
        helpers.unzip(path)
    assert not leftovers() and not list(Path("data").glob("faces-*"))
    assert len(list(helpers.unzip(path).iterdir())) == 5


# --- Data: images -----------------------------------------------------------------------------------------------------

def test_image_names():
    assert all(map(helpers.is_image_name, ["a.jpg", "a/b.PNG", "./a.webp", "../a.tiff", "a\\b.jpeg", "a.b/c.d.bmp"]))
    assert not any(map(helpers.is_image_name, [
        "a", "a.txt", ".jpg", ".a.jpg", "__MACOSX/a.jpg", "a/.b/c.jpg", "a\\.b\\c.jpg", "a.jpg/b", "a.zip", ""]))


def test_load_images_in_order_of_name():
    folder = folder_of_images(Path("images/b"), 3).parent
    Image.fromarray(pixels(64, 64, 3, seed=9)).save(folder / "a.png")
    images = helpers.load_images(folder, 64)
    assert images.shape == (4, 3, 64, 64) and images.dtype == torch.uint8 and images.is_contiguous()
    for image, seed in zip(images, (9, 0, 1, 2)):
        assert np.array_equal(image.permute(1, 2, 0), pixels(64, 64, 3, seed=seed))


def test_shrinking_is_the_mean_of_blocks_of_the_middle_square():
    array = pixels(64, 100, 3)
    Path("images").mkdir()
    Image.fromarray(array).save("images/1.png")
    blocks = array[:, 18:82].reshape(32, 2, 32, 2, 3).astype(float).mean((1, 3))
    assert np.abs(helpers.load_images("images", 32)[0].permute(1, 2, 0).numpy() - blocks).max() <= 1


def test_large_jpegs_are_decoded_small():
    ramp = np.broadcast_to(np.linspace(0, 255, 1024).astype(np.uint8)[None, :, None], (1024, 1024, 3))
    Path("images").mkdir()
    Image.fromarray(ramp.copy()).save("images/1.jpg", quality=95)
    image = helpers.load_images("images", 32)[0].float()
    expected = torch.from_numpy(ramp[0, :, 0].reshape(32, 32).astype(np.float32).mean(1))
    assert (image - expected).abs().max() < 3


def test_small_and_large_files_keep_their_order():
    Path("images").mkdir()
    for number in range(150):
        size = 16 if number % 2 else 256  # noise of 256x256 takes more than 64 KiB
        Image.fromarray(pixels(size, size, 3, seed=number)).save(f"images/{number:03d}.png")
    files = helpers.image_files("images")
    assert {length < helpers.SMALL for _, length, _ in files} == {True, False}
    images, junk = helpers.decode_all("images", files, 8, 150)
    assert not junk
    for (name, *_), image in zip(files, images, strict=True):
        assert np.array_equal(image.transpose(1, 2, 0), helpers.decode(f"images/{name}", 8))


def test_limit_spares_the_files_beyond_it(monkeypatch):
    make_faces(Path("faces"), count=100)
    Path("faces/000.jpg").write_bytes(b"junk")
    decoded, decode = [], helpers.decode
    monkeypatch.setattr(helpers, "decode", lambda *arguments: decoded.append(arguments) or decode(*arguments))
    assert len(helpers.load_images("faces", 32, limit=2)) == 2
    assert [Path(path).name for path, _ in decoded] == ["000.jpg", "001.jpg", "002.jpg"]


def test_limit_counts_images():
    folder = folder_of_images(Path("images"), 5)
    (folder / "0000.png").write_bytes(b"junk")
    images = helpers.load_images(folder, 64, limit=2)
    assert np.array_equal(images[0].permute(1, 2, 0), pixels(64, 64, 3, seed=1)) and len(images) == 2
    assert len(helpers.load_images(folder, 64, limit=1)) == 1 and len(helpers.load_images(folder, 64, limit=99)) == 4
    with pytest.raises(ValueError, match="holds no image"):
        helpers.load_images(folder, 64, limit=0)


def test_junk_is_counted_and_named(capsys):
    folder = folder_of_images(Path("images"), 2)
    for name in "abcd":
        (folder / f"{name}.jpg").write_bytes(b"")
    assert len(helpers.load_images(folder, 32)) == 2
    assert capsys.readouterr().out == "Left out 4 of 6 files that are no image: a.jpg, b.jpg, c.jpg, ...\n"


def test_second_time_comes_from_the_cache(monkeypatch, capsys):
    monkeypatch.setattr(helpers, "WORTH_KEEPING", 0)
    folder = folder_of_images(Path("images"), 4)
    (folder / "0001.png").write_bytes(b"junk")
    first, said = helpers.load_images(folder, 32), capsys.readouterr().out
    (cache,) = Path("data").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(helpers, "decode_all", None)
        assert torch.equal(helpers.load_images(folder, 32), first) and capsys.readouterr().out == said
    for damage in (b"", cache.read_bytes()[:-1], b"junk" * 1000):
        cache.write_bytes(damage)
        assert torch.equal(helpers.load_images(folder, 32), first)
    with open(cache, "wb") as file:  # whole, but of another length
        np.save(file, first.numpy()[:2])
        np.save(file, np.array([1]))
    assert torch.equal(helpers.load_images(folder, 32), first) and len(helpers.load_images(folder, 64)) == 3
    Image.fromarray(pixels(64, 64, 3, seed=7)).save(folder / "0001.png")
    assert len(helpers.load_images(folder, 32)) == 4
    os.rename(folder / "0003.png", folder / "0004.png")
    helpers.load_images(folder, 32)
    assert len(list(Path("data").iterdir())) == 3


def test_small_folders_and_full_disks_have_no_cache(monkeypatch):
    folder = folder_of_images(Path("images"), 2)
    helpers.load_images(folder, 32)
    assert os.listdir() == ["images"]
    monkeypatch.setattr(helpers, "WORTH_KEEPING", 0)
    Path("data").touch()  # a file in place of the folder
    assert len(helpers.load_images(folder, 32)) == 2


def test_links_and_pipes_are_not_waited_for():
    folder = folder_of_images(Path("images"), 2)
    try:
        os.symlink(folder.resolve(), folder / "again")
        os.symlink("nowhere", folder / "broken.png")
        os.symlink("0000.png", folder / "linked.png")
        os.mkfifo(folder / "pipe.png")
    except (OSError, AttributeError):
        pytest.skip("needs links and pipes")
    assert len(helpers.load_images(folder, 32)) == 3


def test_as_pictures():
    folder = folder_of_images(Path("images"), 11, size=32)
    NOTEBOOK.device = torch.device("cpu")
    train, test = NOTEBOOK.get_dataloader(2, 32, folder)
    assert np.array_equal(helpers.as_pictures(train, 3), np.stack([pixels(32, 32, 3, seed=s) for s in (1, 2, 3)]))
    assert len(helpers.as_pictures(train, 99)) == 9
    assert np.array_equal(helpers.as_pictures(test, 99), np.stack([pixels(32, 32, 3, seed=s) for s in (0, 8)]))


# --- Pictures ---------------------------------------------------------------------------------------------------------

def test_to_uint8():
    images = torch.tensor([-2., -1., 0., 1., 2.]).view(5, 1, 1, 1).expand(5, 3, 2, 4)
    assert helpers.to_uint8(images).shape == (5, 2, 4, 3)
    assert helpers.to_uint8(images)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]
    every = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert np.array_equal(helpers.to_uint8(every / 127.5 - 1)[0, :, :, 0].ravel(), np.arange(256))


def test_figures_and_animation(monkeypatch):
    helpers.plt.close("all")
    images = pixels(10, 32, 32, 3)
    assert helpers.grid(images).shape == (2 * 33 + 1, 8 * 33 + 1, 3)
    figure = helpers.show_faces(images, title="faces", path="faces.png")
    helpers.plt.close(figure)
    assert Image.open("faces.png").size == tuple(round(v) for v in figure.get_size_inches() * figure.dpi)
    helpers.save_animation([images[0], images[1], images[2]], "moving.png")
    with Image.open("moving.png") as moving:
        assert moving.n_frames == 3 and np.array_equal(moving.convert("RGB"), images[0])

    class Handle:
        updates = 0

        def update(self, figure):
            self.updates += 1
    shown = []
    monkeypatch.setattr(helpers, "display", lambda figure, display_id: shown.append(figure) or Handle())
    live = helpers.LiveGrid()
    for _ in range(3):
        live.show(images, "now")
    assert len(shown) == 1 and live.handle.updates == 2 and not helpers.plt.get_fignums()


# --- Training runs ----------------------------------------------------------------------------------------------------

def start_and_stay(path):
    helpers.start_run(path, False)
    Path("started").touch()
    time.sleep(60)


@posix
def test_a_second_process_is_refused():
    process = child(start_and_stay, "runs/a")
    try:
        while not Path("started").exists():
            time.sleep(0.01)
        with pytest.raises(ValueError, match="^Another run is writing to .*; wait for its end or choose another"):
            helpers.start_run("runs/a", False)
    finally:
        process.kill()
        process.join()
    assert helpers.start_run("runs/a", False) == helpers.start_run("runs/a", False)  # free again, and mine for good


def test_an_earlier_run_is_moved_aside(capsys):
    for number in range(3):
        run = helpers.start_run("runs/b", False)
        assert run == Path("runs/b") and os.listdir(run) == []
        (run / "checkpoint.pt").write_bytes(bytes([number]))
        (run / "metrics.json").touch()
    assert [Path(f"runs/b{aside}/checkpoint.pt").read_bytes()[0] for aside in ("-1", "-2", "")] == [0, 1, 2]
    assert "is now in" in capsys.readouterr().out
    assert sorted(os.listdir(helpers.start_run("runs/b", True))) == ["checkpoint.pt"]
    Path("file").touch()
    with pytest.raises(OSError, match="output_dir 'file/run' cannot be used"):
        helpers.start_run("file/run", False)


def test_collect():
    records, recent = [[1.0, 2.0]], [torch.tensor([0.5, 1.0]), torch.tensor([0.25, 1.0])]
    helpers.collect(recent, records, "checkpoint.pt")
    assert records == [[1.0, 2.0], [0.5, 1.0], [0.25, 1.0]] and recent == []
    helpers.collect(recent, records, "checkpoint.pt")
    for bad in (math.nan, math.inf):
        with pytest.raises(FloatingPointError, match=r"no longer finite at step 5 \(before: 0.125, 1\).*checkpoint.pt"):
            helpers.collect([torch.tensor([0.125, 1.0]), torch.tensor([bad, 1.0])], list(records), "checkpoint.pt")
    Path("checkpoint.pt").touch()
    with pytest.raises(FloatingPointError, match=r"at step 1 \(before: none\).* is in checkpoint.pt; try lower"):
        helpers.collect([torch.tensor([math.nan])], [], "checkpoint.pt")


def test_epoch_line():
    line = helpers.epoch_line(2, 12, [[0.7, 1.3, 0.6, 0.7]] * 10, 64, 2.0)
    assert line == "epoch   2/12  loss of D 1.300, of G 0.700  D right on real 60%, on fake 70%  320 images/s"
    assert "D has won" in helpers.epoch_line(2, 12, [[9, 0.001, 1, 1]], 64, 2.0)


def test_interruptible(request):
    usual = signal.default_int_handler  # set here, because a background shell starts programs with interrupts ignored
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, usual)))
    with pytest.raises(KeyboardInterrupt), helpers.interruptible() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is usual
    seen = []

    def elsewhere():
        with helpers.interruptible() as stop:
            seen.append(stop.is_set())
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False]


def test_random_state_comes_back():
    cpu = torch.device("cpu")
    state = helpers.random_state(cpu)
    first = torch.rand(5)
    helpers.set_random_state(state, cpu)
    assert torch.equal(torch.rand(5), first)


def parts(seed):
    torch.manual_seed(seed)
    D = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(D.parameters())
    D(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    return {"D": D, "d_optimizer": optimizer}


def state_of(some):
    return pickle.dumps([part.state_dict() for part in some.values()])


def test_checkpoint_comes_back():
    first, second = parts(0), parts(1)
    helpers.save_checkpoint("checkpoint.pt", first, DEFAULTS | {"device": "cpu"}, records=[[1.0]], data="7 faces")
    wanted = DEFAULTS | {"device": "cuda", "n_epochs": 99, "dataset": "elsewhere"}
    state = helpers.load_checkpoint("checkpoint.pt", second, wanted, data="7 faces")
    assert state["records"] == [[1.0]]
    assert all(torch.equal(a, b) for a, b in zip(first["D"].parameters(), second["D"].parameters()))


def test_checkpoint_of_other_settings_is_refused_untouched():
    helpers.save_checkpoint("checkpoint.pt", parts(0), {"z_size": 100, "seed": 0}, data="7 faces")
    mine = parts(1)
    before = state_of(mine)
    with pytest.raises(ValueError, match=r"made with other settings: z_size was 100 and is 64; data was .7 faces"):
        helpers.load_checkpoint("checkpoint.pt", mine, {"z_size": 64, "seed": 0}, data="8 faces")
    assert state_of(mine) == before


@pytest.mark.parametrize("image_size", [32, 64])
def test_the_file_draws_what_the_network_draws(image_size):
    module = definitions(image_size=image_size, z_size=20)
    torch.manual_seed(0)
    G = module.Generator(20, 4, image_size)
    for _ in range(3):
        G(torch.rand(16, 20))  # so that the running statistics are not those of the start
    helpers.save_generator(".", G.eval(), 20, 4, image_size, epochs=3)
    z = 2 * torch.rand(300, 20, generator=torch.Generator().manual_seed(5)) - 1
    with torch.no_grad():
        direct = helpers.to_uint8(G(0.5 * z))
    faces = helpers.load_generator(".")(300, seed=5, truncation=0.5)
    assert faces.shape == (300, image_size, image_size, 3) and faces.dtype == np.uint8
    assert np.abs(faces.astype(int) - direct).max() <= 1
    assert json.loads(Path("generator.json").read_text())["epochs"] == 3


def test_keep_generator_halves_the_file_and_keeps_the_faces():
    G = definitions(image_size=32).Generator(20, 8).eval()
    Path("kept").mkdir()
    helpers.save_generator(".", G, 20, 8, 32, epochs=3)
    with pytest.raises(FileNotFoundError, match="no run came to its end in .*no metrics.json; finish it"):
        helpers.keep_generator(".", "kept")
    assert not any(Path("kept").iterdir())
    parameters = {"dataset": "/a/path", "output_dir": "/b", "start_from": "/a/first/", "seed": 1}
    helpers.save_json("metrics.json", {"parameters": parameters, "measures": {"swd": 20}})
    helpers.keep_generator(".", "kept")
    assert 1.9 < Path("generator.safetensors").stat().st_size / Path("kept/generator.safetensors").stat().st_size < 2.1
    about = json.loads(Path("kept/generator.json").read_text())
    assert about["epochs"] == 3
    assert about["run"] == {"parameters": {"start_from": "first", "seed": 1}, "measures": {"swd": 20}}
    difference = helpers.load_generator("kept")(50).astype(int) - helpers.load_generator(".")(50)
    assert np.abs(difference).max() <= 2 and np.abs(difference).mean() < 0.1


def test_zip_faces_makes_a_dataset():
    module = definitions(image_size=32, z_size=20)
    helpers.save_generator(".", module.Generator(20, 4, 32).eval(), 20, 4, 32)
    helpers.zip_faces(".", "faces.zip", count=10)
    again = Path("faces.zip").read_bytes()
    helpers.zip_faces(".", "faces.zip", count=10)
    assert Path("faces.zip").read_bytes() == again
    folder = helpers.unzip("faces.zip")
    assert (folder / "processed_celeba_small/celeba/000009.jpg").is_file()
    images = helpers.load_images(folder, 32).permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(images - helpers.load_generator(".")(10)).mean() < 10


def test_first_and_last():
    records = [[step, 2 * step, 0.25, 1.0] for step in range(20)]
    assert helpers.first_and_last(records).splitlines() == [
        "| | first tenth | last tenth |", "|---|---|---|", "| loss of G | 0.50 | 18.50 |", "| loss of D | 1.00 | 37.00 |",
        "| D right on real | 0.25 | 0.25 |", "| D right on generated | 1.00 | 1.00 |"]
    assert "| loss of G | 3.00 | 3.00 |" in helpers.first_and_last([[3, 1, 0, 1]])


def test_pictures_of_a_run():
    records = [[step, 2 * step, 0.25, 1.0] for step in range(40)]
    left, right = helpers.show_training(records, Path("curves.png")).axes
    assert Image.open("curves.png").size == (1100, 350)
    curves = {line.get_label(): line.get_xydata() for line in left.lines + right.lines}
    assert np.allclose(curves["Generator"], [[step, step - 0.5] for step in range(1, 40)])  # means over two steps
    assert np.allclose(curves["Discriminator"][:, 1], [2 * step - 1 for step in range(1, 40)])
    assert set(curves["real images"][:, 1]) == {0.25} and set(curves["generated images"][:, 1]) == {1}
    faces = pixels(12, 8, 8, 3)
    one, two = helpers.show_beside({"a": faces, "b": faces[::-1]}).axes
    assert (one.get_title(), two.get_title()) == ("a", "b")
    assert np.array_equal(two.images[0].get_array(), helpers.grid(faces[::-1], 6))
    helpers.plt.close("all")


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


def test_nearest_and_diversity():
    images = pixels(20, 32, 32, 3)
    index, distance = helpers.nearest(images[[7, 3]], images)
    assert index.tolist() == [7, 3] and np.abs(distance).max() < 1e-3
    white, black = np.full((1, 2, 2, 3), 255, np.uint8), np.zeros((1, 2, 2, 3), np.uint8)
    assert helpers.nearest(white, black)[1] == pytest.approx(1)
    assert helpers.diversity(np.repeat(images[:1], 10, 0)) == 0
    assert helpers.diversity(np.stack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)])) == 1


class Pixels(FeatureExtractorBase):
    """Two numbers an image in place of Inception's: its mean brightness, and that of its upper left pixel."""

    seen = []

    def __init__(self, name, features_list, **options):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return "2",

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "2"

    def forward(self, images):
        self.seen.append(images)
        x = images.double() / 255
        return torch.stack([x.mean((1, 2, 3)), x[:, :, 0, 0].mean(1)], dim=1),


def test_inception_distances_through_another_extractor():
    a = np.random.default_rng(0).integers(0, 200, (300, 8, 8, 3), np.uint8)
    register_feature_extractor("pixels", Pixels)
    same = helpers.inception_distances(a, a, feature_extractor="pixels")
    assert same["fid"] == pytest.approx(0, abs=1e-6) and same["kid"] == pytest.approx(0, abs=1e-3)
    brighter = helpers.inception_distances(a, a + 51, feature_extractor="pixels")
    assert brighter["fid"] == pytest.approx(2 * 0.2**2, rel=1e-3)  # same covariance: the distance of the means, squared
    assert Pixels.seen[0].dtype == torch.uint8 and Pixels.seen[0].shape[1:] == (3, 8, 8)
    assert torch.equal(Pixels.seen[0][:5].permute(0, 2, 3, 1), torch.from_numpy(a[:5]))


def test_inception_distances_say_that_the_network_is_missing(monkeypatch):
    a = np.zeros((4, 8, 8, 3), np.uint8)
    monkeypatch.setattr("torch_fidelity.calculate_metrics", mock.Mock(side_effect=URLError("no route")))
    with pytest.raises(OSError, match="FID and KID need a network that could not be downloaded .*no route"):
        helpers.inception_distances(a, a)
