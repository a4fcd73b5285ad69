"""The notebook as a whole: its hygiene, and papermill runs judged by what they leave behind and what they say.

What its cells print is compared by nbval, which pytest runs on face_generation.ipynb itself."""
import json
import re
import shlex
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import papermill
import pytest
import torch
from PIL import Image

import helpers
from notebook import NOTEBOOK, ROOT, cells

TINY = {"dataset": "faces", "batch_size": 8, "d_conv_dim": 4, "g_conv_dim": 4, "z_size": 10, "device": "cpu",
        "precision": "fp32"}


# --- Hygiene ----------------------------------------------------------------------------------------------------------

def test_notebook_is_executed_in_order():
    assert [cell.execution_count for cell in cells()] == list(range(1, len(cells()) + 1))
    assert not [cell.id for cell in cells() if any(o.output_type == "error" for o in cell.outputs)]
    silent = [cell.id for cell in cells() if re.search(r"^(print|figure)\b", cell.source, re.M) and not cell.outputs]
    assert not silent


def test_notebook_text_is_clean():
    text = NOTEBOOK.read_text()
    assert len(text) < 2_000_000
    assert "application/vnd.jupyter.widget" not in text and not nbformat.read(NOTEBOOK, 4).metadata.get("widgets")
    for cell in cells():
        outputs = json.dumps([{**o, "data": {k: v for k, v in o.get("data", {}).items() if not k.startswith("image/")}}
                              for o in cell.outputs])
        assert not re.search(r"Warning|/(home|root|tmp|Users)/", outputs + cell.source), cell.id
        assert not cell.source.rstrip().endswith(";"), cell.id


def test_notebook_keeps_its_size():
    lines = [sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in cells()]
    assert np.median(lines) <= 8 and max(lines) <= 35 and 250 <= sum(lines) <= 350


def test_help_lists_every_parameter():
    listed = papermill.inspect_notebook(str(NOTEBOOK))
    assert set(listed) == set(helpers.RULES)
    for name, parameter in listed.items():
        assert parameter["inferred_type_name"] == helpers.RULES[name][0].__name__ and parameter["help"], name


def test_readme_commands_are_the_ones_ci_runs():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    command = ci.strip().splitlines()[-1].replace(" -q ", " ")
    assert command.endswith("pytest") and command in readme
    assert "-".join(shlex.split(command)[:3]) == "python3--m-venv"


def test_links_lead_somewhere():
    texts = {"README.md": (ROOT / "README.md").read_text()} | {cell.id: cell.source for cell in cells("markdown")}
    for where, text in texts.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            assert re.match(r"https?://", target) or (ROOT / target.split("#")[0]).exists(), (where, target)


# --- papermill --------------------------------------------------------------------------------------------------------

def make_faces(folder, count=40, seed=0):
    """count images, like faces in size and in having a light oval on a darker ground."""
    folder.mkdir(parents=True)
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[-1:1:64j, -1:1:64j]
    for number in range(count):
        oval = ((x / rng.uniform(0.5, 0.8)) ** 2 + y**2 < 0.8)[..., None]
        picture = np.where(oval, rng.uniform(120, 250, 3), rng.uniform(0, 120, 3)).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{number:03d}.jpg")


@pytest.fixture
def project(tmp_path):
    """A copy of the notebook and its modules beside a folder of 40 images."""
    for name in ("face_generation.ipynb", "helpers.py", "problem_unittests.py"):
        shutil.copy(ROOT / name, tmp_path)
    make_faces(tmp_path / "faces")
    return tmp_path


def run(project, **parameters):
    """papermill on the copy, as a person would call it: (exit status, what it printed)."""
    command = [sys.executable, "-m", "papermill", "face_generation.ipynb", "out.ipynb", "--no-progress-bar"]
    for name, value in (TINY | parameters).items():
        command += ["-p", name, str(value)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


def test_run_resumed_equals_run_uninterrupted(project):
    status, said = run(project, n_epochs=1, output_dir="runs/parts")
    assert status == 0, said
    metrics = json.loads((project / "runs/parts/metrics.json").read_text())
    assert metrics["steps"] == 5 and metrics["images"] == 40 and metrics["parameters"]["n_epochs"] == 1
    assert {"versions", "device", "precision", "train_seconds", "images_per_second", "d_loss", "g_loss",
            "measures"} <= set(metrics)
    assert [s.shape for s in helpers.load_samples(project / "runs/parts/train_samples.pkl")] == [(16, 32, 32, 3)]
    assert helpers.load_generator(project / "runs/parts")(3).shape == (3, 32, 32, 3)

    status, said = run(project, n_epochs=2, output_dir="runs/parts", resume="true")
    assert status == 0, said
    status, said = run(project, n_epochs=2, output_dir="runs/whole", resume="false")
    assert status == 0, said
    parts, whole = (torch.load(project / "runs" / name / "checkpoint.pt", weights_only=True)
                    for name in ("parts", "whole"))
    assert parts["records"] == whole["records"] and len(whole["records"]) == 10
    for network in ("D", "G", "G_average"):
        for name, value in whole["parts"][network].items():
            assert torch.equal(parts["parts"][network][name], value), (network, name)
    resumed, uninterrupted = (helpers.load_samples(project / "runs" / name / "train_samples.pkl")
                              for name in ("parts", "whole"))
    assert len(resumed) == 2 and all(np.array_equal(a, b) for a, b in zip(resumed, uninterrupted, strict=True))


def test_run_on_odd_images_at_64(project):
    odd = project / "odd" / "deeper"
    make_faces(odd, count=12)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (90, 70), np.uint8)).save(odd / "grey.png")
    Image.fromarray(rng.integers(0, 255, (70, 90, 4), np.uint8)).save(odd / "alpha.png")
    Image.fromarray(rng.integers(0, 255, (20, 300, 3), np.uint8)).quantize(8).save(odd / "palette.gif")
    (odd / "cut.jpg").write_bytes((odd / "000.jpg").read_bytes()[:300])
    (odd / "note.txt").write_text("no image")
    status, said = run(project, dataset="odd", image_size=64, n_epochs=1, output_dir="runs/odd")
    assert status == 0, said
    assert json.loads((project / "runs/odd/metrics.json").read_text())["images"] == 15
    out = (project / "out.ipynb").read_text()
    assert "Left out 1 of 16 files that are no image: cut.jpg" in out


@pytest.mark.parametrize("parameters, sentences", [
    ({"batch_size": "many", "resume": "perhaps", "image_size": 48, "d_lr": -1, "precision": "fp8", "d_rate": 0.1},
     ["batch_size must be a whole number, 4 or more", "resume must be true or false; it is 'perhaps'",
      "image_size must be a whole number, 32, 64 or 128; it is 48", "d_lr must be a number, more than 0; it is -1",
      "d_rate is no parameter of this notebook", "precision must be auto, fp32 or bf16; it is 'fp8'"]),
    ({"dataset": "nowhere"}, ["dataset 'nowhere' does not exist"]),
    ({"dataset": "broken.zip"}, ["broken.zip cannot be used as a dataset"]),
    ({"batch_size": 64}, ["faces holds 40 images, fewer than one batch of 64"]),
    ({"device": "xpu"}, ["device is 'xpu', and PyTorch finds none here"]),
    ({"resume": True}, ["there is no runs/latest/checkpoint.pt to go on from"]),
], ids=["parameters", "no dataset", "broken zip", "few images", "no device", "nothing to resume"])
def test_wrong_input_is_refused_in_a_sentence(project, parameters, sentences):
    (project / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    status, said = run(project, **parameters)
    assert status != 0
    error = [line for line in said.splitlines() if re.match(r"\w*Error: ", line)][-1]
    assert not [s for s in sentences if s not in error], error
    assert not (project / "runs/latest/metrics.json").exists()
