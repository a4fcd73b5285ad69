"""What several test files share."""
import io
import multiprocessing
import os
import re
import shutil
import sys

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # before torch: threads of workers that share cores wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))))

import numpy as np
import pytest
from PIL import Image

import helpers
from plumbing.settings import Settings
from plumbing.story import ROOT, definitions, ready_to_train

STORY = vars(definitions(device="auto", precision="auto"))
DEFAULTS = {name: STORY.get(name) for name in Settings.model_fields}  # a test in test_settings tells which are missing
SMALL = {"batch_size": 8, "n_epochs": 3, "d_conv_dim": 4, "g_conv_dim": 4, "z_size": 10, "print_every": 2, "lr_decay": 3,
         "lookahead": 2}
TINY = {"dataset": "faces", "batch_size": 8, "d_conv_dim": 4, "g_conv_dim": 4, "z_size": 10, "device": "cpu",
        "precision": "fp32"}  # in a copied project
posix = pytest.mark.skipif(sys.platform != "linux", reason="forks: Windows cannot, macOS not in a process with threads")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test in a folder of its own, with no figure left open."""
    monkeypatch.chdir(tmp_path)
    yield
    helpers.plt.close("all")


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(format="PNG", image=None, **options):
    """The bytes of an image file: noise of 40x40 unless image is given."""
    file = io.BytesIO()
    (image or Image.fromarray(pixels(40, 40, 3))).save(file, format, **options)
    return file.getvalue()


class Calls:
    """Pickles into a call of function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def make_faces(folder, count=46, seed=0):
    """count images, seven in eight of them to train on, like faces in size and in having a light oval on a darker ground."""
    folder.mkdir(parents=True)
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[-1:1:64j, -1:1:64j]
    for number in range(count):
        oval = ((x / rng.uniform(0.5, 0.8)) ** 2 + y**2 < 0.8)[..., None]
        picture = np.where(oval, rng.uniform(120, 250, 3), rng.uniform(0, 120, 3)).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{number:03d}.jpg")


def copy_project(folder):
    """Copy the notebook and its modules to folder, beside 46 images."""
    for name in ("face_generation.ipynb", "helpers.py", "problem_unittests.py"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "plumbing", folder / "plumbing", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "assets", folder / "assets")
    make_faces(folder / "faces")


def set_up(faces, run, **parameters):
    """The notebook's module on a folder of faces, ready to train small networks in the folder run."""
    run.mkdir(exist_ok=True)
    return ready_to_train(**(SMALL | {"data_dir": faces, "run": run} | parameters))


def child(function, *arguments):
    """A process that runs function and has this test's state: forked, so that it need not import torch again."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def at_home(monkeypatch, folder):
    """Let ~ stand for folder."""
    for name in ("HOME", "USERPROFILE"):  # POSIX, Windows
        monkeypatch.setenv(name, str(folder))


def refused(call, *parts):
    """call() must raise ValueError or OSError with one sentence that holds parts; returns the sentence."""
    with pytest.raises((ValueError, OSError)) as caught:
        call()
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 1000, sentence
    told = re.sub(r"\\+", "/", sentence) if os.name == "nt" else sentence  # parts have the paths of POSIX
    assert all(part in told for part in parts), sentence
    return sentence
