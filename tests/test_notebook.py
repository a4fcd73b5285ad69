"""The notebook as a whole: its hygiene, and papermill runs judged by what they leave behind and what they say.

What its cells print is compared by nbval, which pytest runs on face_generation.ipynb itself."""
import ast
import contextlib
import json
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import papermill
import psutil
import pytest
import torch
import yaml
from conftest import DEFAULTS, TINY, copy_project, make_faces
from PIL import Image

import helpers
from plumbing import settings
from plumbing.story import NOTEBOOK, ROOT, cells


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


def test_pictures_have_a_text():
    missing = [cell.id for cell in cells() for output in cell.outputs if "image/png" in output.get("data", {})
               and not output.metadata.get("image/png", {}).get("alt")]
    assert not missing


def code_lines(source):
    """Lines of code in a cell, without blank lines, comments and docstrings."""
    tree = ast.parse(source)
    texts = {line for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node)
             for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    return sum(bool(line.strip()) and line.strip()[0] != "#" and number not in texts
               for number, line in enumerate(source.splitlines(), 1))


def test_notebook_keeps_its_size():
    longest = max(sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in cells())
    lines = [code_lines(cell.source) for cell in cells()]
    words = sum(len(cell.source.split()) for cell in cells("markdown"))
    assert longest <= 30 and np.median(lines) <= 8 and sum(lines) <= 400 and words <= 3600
    assert 60 <= len(cells()) + len(cells("markdown")) <= 90


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_hold_right_parameters(recipe):
    changes = yaml.safe_load(recipe.read_text())
    assert set(changes) <= set(DEFAULTS)
    changes.pop("start_from", None)  # its checkpoint is not here
    assert settings.check(DEFAULTS | changes) == DEFAULTS | changes


def test_the_recipe_of_the_kept_generator_is_its_own():
    """A default that changes must not change the recipe, which names what differs from the defaults."""
    made_with = json.loads((ROOT / "assets" / "generator.json").read_text())["run"]["parameters"]
    recipe = DEFAULTS | yaml.safe_load((ROOT / "recipes" / "kept_stage2.yaml").read_text())
    recipe["start_from"] = recipe["start_from"].split("/")[-1]  # as tools.keep_generator keeps it
    assert {name: recipe[name] for name in made_with} == made_with


def test_readme_commands_are_the_ones_ci_runs():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    command = ci.strip().splitlines()[-1].replace(" -q ", " ")
    assert command.endswith("pytest") and command in readme
    assert "-".join(shlex.split(command)[:3]) == "python3--m-venv"


def test_links_lead_somewhere():
    pages = [ROOT / name for name in ("README.md", "benchmarks/README.md", "recipes/README.md", "assets/model_card.md")]
    texts = {page: page.read_text() for page in pages} | {NOTEBOOK: "".join(cell.source for cell in cells("markdown"))}
    for page, text in texts.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            assert re.match(r"https?://", target) or (page.parent / target.split("#")[0]).exists(), (page, target)


# --- papermill --------------------------------------------------------------------------------------------------------

@pytest.fixture
def project(tmp_path):
    """A copy of the notebook and its modules beside a folder of 46 images."""
    copy_project(tmp_path)
    return tmp_path


def start(project, output="out.ipynb", **parameters):
    """papermill on the copy, as a person would call it from a shell that passes interrupts on."""
    command = [sys.executable, "-m", "papermill", "face_generation.ipynb", output, "--no-progress-bar"]
    for name, value in (TINY | parameters).items():
        command += ["-p", name, str(value)]
    return subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def end(process):
    """Wait for papermill: (exit status, what it printed)."""
    said = process.communicate(timeout=300)[1]
    return process.returncode, said


def run(project, **parameters):
    """papermill on the copy, from start to end: (exit status, what it printed)."""
    return end(start(project, **parameters))


def error_in(said):
    """The last line of what papermill printed that names an error."""
    return [line for line in said.splitlines() if re.match(r"\w*Error: ", line)][-1]


def kill(process):
    """Kill papermill and its kernel at once."""
    with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended
        papermill = psutil.Process(process.pid)
        papermill.suspend()
        for one in [*papermill.children(recursive=True), papermill]:
            one.kill()
    process.communicate()


def epochs_in(folder):
    """How many epochs the checkpoint in folder holds, which must be whole; 0 if there is none."""
    path = folder / "checkpoint.pt"
    return len(torch.load(path, weights_only=True)["samples"]) if path.exists() else 0


def test_one_line_given_again_until_the_run_has_ended(project):
    whole, again = (project / "runs" / name for name in ("whole", "again"))
    status, said = run(project, n_epochs=8, output_dir="runs/whole", resume="false")
    assert status == 0, said
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["steps"] == 40 and metrics["images"] == 40 and metrics["parameters"]["n_epochs"] == 8
    assert {"versions", "device", "precision", "train_seconds", "images_per_second", "d_loss", "g_loss",
            "measures"} <= set(metrics)
    assert [s.shape for s in helpers.load_samples(whole / "train_samples.pkl")] == 8 * [(16, 32, 32, 3)]
    assert helpers.load_generator(whole)(3).shape == (3, 32, 32, 3)

    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    status, said = run(project, n_epochs=8, output_dir="runs/whole", resume="true", seed=1)
    assert status != 0 and "seed was 0 and is 1" in error_in(said)
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == files  # refused, and left as it is

    moments, kills, notebooks = random.Random(0), [(0, 2.0), (1, 0.3), (8, 2.0)], []
    while not (again / "metrics.json").exists():
        process = start(project, n_epochs=8, output_dir="runs/again", resume="true")
        if kills:
            epochs, most = kills.pop(0)  # within most seconds after as many epochs
            while epochs_in(again) < epochs:
                assert process.poll() is None, end(process)
                time.sleep(0.02)
            time.sleep(moments.uniform(0, most))
            kill(process)
            assert epochs_in(again) >= epochs and not (again / "metrics.json").exists()
            notebooks.append((project / "out.ipynb").read_text() if (project / "out.ipynb").exists() else "")
            complete = (again / "checkpoint.pt").read_bytes() if epochs else b""
        else:
            status, said = end(process)
            assert status == 0, said
    assert "There is no checkpoint in runs/again to go on from: the run starts." in notebooks[1]
    assert "to go on from" not in notebooks[2]
    assert (again / "checkpoint.pt").read_bytes() == complete  # the last time it was measured only
    found, wanted = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (again, whole))
    for name in ("parts", "records", "samples", "distances", "fixed_z", "order", "random"):
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=0)
    assert json.loads((again / "metrics.json").read_text())["measures"] == metrics["measures"]


@pytest.mark.parametrize("interrupted", ["kernel", "papermill"])
def test_interrupted_run_has_no_metrics_and_goes_on(project, interrupted):
    process, folder = start(project, n_epochs=1000), project / "runs" / "latest"
    while not (folder / "checkpoint.pt").exists():
        assert process.poll() is None, end(process)
        time.sleep(0.1)
    kernel = next(p for p in psutil.Process(process.pid).children(recursive=True) if "ipykernel" in str(p.cmdline()))
    {"kernel": kernel, "papermill": process}[interrupted].send_signal(signal.SIGINT)
    status, said = end(process)
    with contextlib.suppress(psutil.NoSuchProcess):
        kernel.wait(timeout=30)
    assert not (folder / "metrics.json").exists()
    done = len(torch.load(folder / "checkpoint.pt", weights_only=True)["records"])
    if interrupted == "kernel":  # the cells below the loop have worked on what there was
        assert status == 0, said
        said = (project / "out.ipynb").read_text()
        assert f"stopped after step {done}, checkpoint written" in said and "set resume to True and go on" in said
        assert helpers.load_generator(folder)(3).shape == (3, 32, 32, 3)
    n_epochs = done // 5 + 1
    status, said = run(project, n_epochs=n_epochs, resume=True)
    assert status == 0, said
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 5 * n_epochs


def test_two_runs_at_once(project, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the README says: else several times slower
    shutil.make_archive(project / "faces", "zip", project, "faces")
    both = [start(project, f"{name}.ipynb", dataset="faces.zip", n_epochs=1, output_dir=f"runs/{name}")
            for name in "ab"]
    for status, said in map(end, both):
        assert status == 0, said
    a, b = (torch.load(project / "runs" / name / "checkpoint.pt", weights_only=True)["records"] for name in "ab")
    assert a == b and len(a) == 5
    assert all((project / "runs" / name / "metrics.json").exists() for name in "ab")


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
    assert json.loads((project / "runs/odd/metrics.json").read_text())["images"] == 13
    out = (project / "out.ipynb").read_text()
    assert "Left out 1 of 16 files that are not images: cut.jpg" in out


@pytest.mark.parametrize("parameters, sentences", [
    ({"batch_size": "many", "resume": "perhaps", "image_size": 48, "d_lr": -1, "precision": "fp8", "d_rate": 0.1},
     ["batch_size must be a whole number, at least 4", "resume must be true or false; it is 'perhaps'",
      "image_size must be 32, 64 or 128; it is 48", "d_lr must be a number, more than 0; it is -1",
      "d_rate is not a parameter of this notebook", "precision must be auto, fp32 or bf16; it is 'fp8'"]),
    ({"batch_size": 64}, ["faces holds 46 images, seven in eight of them to train on: too few for a batch of 64"]),
], ids=["parameters", "few images"])  # each room's own tests have the others
def test_wrong_input_is_refused_in_a_sentence(project, parameters, sentences):
    status, said = run(project, **parameters)
    assert status != 0
    assert not [s for s in sentences if s not in error_in(said)], said
    assert not (project / "runs/latest/metrics.json").exists()


@pytest.mark.parametrize("changes, sentence", [
    ({"self.FC = nn.Linear(z_size": "self.entry = nn.Linear(z_size"}, "does not hold a generator of this notebook"),
    ({", conv_dim, image_size=32)": ", conv_dim)",
      "F.relu(FC(z).unflatten(1, (-1, 2, 2)))": "FC(z).view(-1, FC.out_features // 4, 2, 2)",
      "nn.init.zeros_(m.bias)": "pass", "D.requires_grad_(": "(", "stride, padding, bias=False": "stride, padding"},
     "metrics.json is written")], ids=["other names", "other signatures, layers, biases, and D not frozen"])
def test_definitions_of_ones_own_arrive_at_the_end(project, changes, sentence):
    notebook = project / "face_generation.ipynb"
    text = notebook.read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    notebook.write_text(text)
    status, said = run(project, n_epochs=1)
    assert status == 0, said
    assert sentence in (project / "out.ipynb").read_text()
    assert (project / "runs/latest/metrics.json").exists()
