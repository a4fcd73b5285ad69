"""The notebook's stored outputs are those of its run, and a run that learnt nothing is noticed."""
import base64
import copy
import io
import json
import re
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from PIL import Image
from stored import faults, pictures, texts

import helpers
from plumbing.story import NOTEBOOK, ROOT, cells

RUN = ROOT / "assets"


def altered(change):
    """The notebook's code cells after change(cell) of each output."""
    changed = copy.deepcopy(cells())
    for cell in changed:
        for output in cell.outputs:
            change(cell, output)
    return changed


def replace(old, new):
    """A change of stored text that must be there once."""
    count = sum(len(re.findall(old, texts(cell))) for cell in cells())
    assert count >= 1, old

    def change(cell, output):
        if "text" in output:
            output["text"] = re.sub(old, new, output["text"])
        if "text/markdown" in output.get("data", {}):
            output["data"]["text/markdown"] = re.sub(old, new, output["data"]["text/markdown"])
    return change


def redrawn(change, part=""):
    """A change of the cells that hold part: change(picture) in place of each picture, uint8 (height, width, 3)."""
    def replacing(cell, output):
        if "image/png" in output.get("data", {}) and part in cell.source:
            file, picture = io.BytesIO(), pictures(nbformat.from_dict({"outputs": [output]}))[0]
            Image.fromarray(np.ascontiguousarray(change(picture))).save(file, "PNG")
            output["data"]["image/png"] = base64.b64encode(file.getvalue()).decode()
    return replacing


def noise_faces(picture):
    """64 noises of 32x32 in place of faces: unlike noise, each of their pixels is drawn as many equal ones."""
    faces, file = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8), io.BytesIO()
    helpers.show_faces(faces, title="64 generated faces, unselected").savefig(file)
    return np.asarray(Image.open(file).convert("RGB"))


def mirrored(picture):
    return picture[:, ::-1]


noise = redrawn(lambda picture: np.random.default_rng(0).integers(0, 256, picture.shape, np.uint8))


def test_stored_outputs_are_those_of_the_run():
    assert faults(cells(), RUN) == []


def test_the_tables_show_the_stored_run():
    run = json.loads((RUN / "metrics.json").read_text())
    seconds, images, swd = f"{run['train_seconds']:.0f}", run["steps"] * run["parameters"]["batch_size"], [
        f"{run['measures'][name]:.1f}" for name in ("swd", "swd_floor", "swd_untrained")]
    row = f", {run['precision']} | {images:,} | {seconds} s | {run['images_per_second']:.0f} | {swd[0]} ({swd[1]}, {swd[2]}) |"
    pages = {page: (ROOT / page).read_text("utf-8") for page in ("README.md", "benchmarks/README.md")}
    assert all(row in page for page in pages.values()), row
    assert f"{seconds} seconds of training" in pages["README.md"]


@pytest.mark.parametrize("change, fault", [
    (replace(r"epoch  1/7  loss of D [\d.]+", "epoch  1/7  loss of D 9.999"), "the lines of the epochs"),
    (replace(r"average [\d.]+", "average 1.0"), "the lines of the epochs"),
    (replace(r"\| this run \| [\d.]+", "| this run | 1.0"), "the measures of 'this run'"),
    (replace(r"\| close_pairs \| [\d,]+", "| close_pairs | 0"), "close_pairs is not"),
    (replace(r"holds: the distance is under", "DOES NOT HOLD: the distance is under"), "a claim does not hold"),
    (noise, "is noise"), (redrawn(noise_faces, "generated_faces.png"), "generated_faces.png is not that"),
    (redrawn(mirrored, "training_loss.png"), "training_loss.png is not that"),
    (redrawn(mirrored, "Faces of the data set"), "processed_face_data.png is not that")],
    ids=["loss", "distance", "table", "pairs", "verdict", "pictures", "faces of noise", "another curve", "other faces"])
def test_an_altered_output_is_noticed(change, fault):
    assert any(fault in sentence for sentence in faults(altered(change), RUN))


def test_every_picture_is_looked_at():
    shown = [cell for cell in cells() if pictures(cell)]
    assert len(shown) >= 18
    for cell in shown:
        one = copy.deepcopy(cell)
        for output in one.outputs:
            noise(one, output)
        assert f"a picture of cell {cell.id} is noise" in faults([one], RUN)


def test_a_generator_that_learnt_nothing_is_noticed(tmp_path):
    """The verdicts are compared as text, and those of such a run differ."""
    *_, verdict = [cell for cell in cells() if "judge.verdict(" in cell.source]
    assert not verdict.metadata.get("tags")
    settings = {"g_lr": 1e-12, "n_epochs": 1, "d_conv_dim": 8, "g_conv_dim": 8, "output_dir": str(tmp_path / "run")}
    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), str(tmp_path / "out.ipynb"), "--cwd", str(ROOT)]
    done = subprocess.run(command + [word for name, value in settings.items() for word in ("-p", name, str(value))],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, = [texts(cell) for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells if cell.get("id") == verdict.id]
    for claim in ("the distance is under half", "the distance is between", "close pairs are fewer", "the spread"):
        assert f"DOES NOT HOLD: {claim}" in said and f"holds: {claim}" in texts(verdict)
