"""plumbing/settings.py: each wrong parameter is refused in one sentence that names it; the others are converted."""
import reprlib
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import papermill
import pytest
from conftest import DEFAULTS, at_home, refused
from rows_settings import REFUSED, TAKEN

from plumbing import settings, story


def check(**changes):
    return settings.check(DEFAULTS | changes)


@pytest.mark.parametrize("name, value, wanted", REFUSED, ids=reprlib.repr)
def test_wrong_values(name, value, wanted):
    assert refused(lambda: check(**{name: value})) == f"{name} must be {wanted}; it is {reprlib.repr(value)}."


@pytest.mark.parametrize("name, value, becomes", TAKEN, ids=reprlib.repr)
def test_right_values(name, value, becomes):
    checked = check(**{name: value})[name]
    assert checked == becomes and type(checked) is type(becomes)


def test_defaults_stay_as_they_are():
    assert check() == DEFAULTS


def test_each_wrong_parameter_gets_a_sentence():
    injected = ["", "batch = 1", "# Parameters\nbatch_sise = 64\nseed = 1\n", "batch = 1"]
    sentence = refused(lambda: check(beta1=1, batch_size="abc", In=injected), ", ".join(DEFAULTS))
    assert sentence.startswith("batch_sise is not a parameter of this notebook, which has dataset, ")
    assert sentence.endswith(". batch_size must be a whole number, at least 4; it is 'abc'. "
                             "beta1 must be a number, at least 0, less than 1; it is 1.")
    assert check(In=injected[:2]) == DEFAULTS


def test_fid_needs_its_package(monkeypatch):
    assert check(fid=True)["fid"]
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    refused(lambda: check(fid=True), "fid is true and needs a package: pip install torch-fidelity")
    assert not check(fid=False)["fid"]


def test_start_from_must_be_another_run(monkeypatch, tmp_path):
    at_home(monkeypatch, tmp_path)
    here = {"start_from": "~", "output_dir": "."}
    for folder in ("~", "x" * 300):
        refused(lambda: check(**here | {"start_from": folder}),
                f"start_from is '{folder}', which does not hold a checkpoint.pt; give the folder of a run")
    Path("checkpoint.pt").touch()
    refused(lambda: check(**here), "start_from lies in output_dir, which is moved aside when a run starts there; choose another")
    assert check(**here | {"output_dir": "runs/other"})["start_from"] == "~"
    again = {"start_from": "gone", "output_dir": "runs/other", "resume": True}
    refused(lambda: check(**again), "start_from is 'gone', which does not hold a checkpoint.pt; give the folder of a run")
    Path("runs/other").mkdir(parents=True)
    Path("runs/other/checkpoint.pt").touch()
    assert check(**again)["start_from"] == "gone"  # it has started already


def test_a_run_and_its_faces_lie_apart(monkeypatch, tmp_path):
    """A run that starts moves an earlier one aside with all that is in it, and leaves pictures where it works."""
    at_home(monkeypatch, tmp_path)
    for folder in ("faces/deeper", "runs/a/faces", "other"):
        Path(folder).mkdir(parents=True)
    Path("runs/a/faces.zip").touch()
    Path("link").symlink_to("runs/a")
    for dataset, output in (("runs/a/faces", "runs/a"), ("runs/a/faces.zip", "runs/a"), ("runs/a/faces", "runs"),
                            ("faces", "faces"), ("~/faces", "./faces"), ("runs/a/faces", "link"), ("faces", ".")):
        refused(lambda: check(dataset=dataset, output_dir=output), "dataset lies in output_dir, which is moved aside")
    for output in ("faces/run", "faces/deeper/run", "other/../faces/run"):
        refused(lambda: check(dataset="faces", output_dir=output), "output_dir lies in dataset, where a run's pictures")
    for dataset, output in (("faces", "runs/b"), ("faces", "faces-1"), ("runs/a/faces.zip", "runs/b"), ("celeba", ".")):
        assert check(dataset=dataset, output_dir=output)["dataset"] == dataset


def kind(field):
    """The name of a field's type; Literal[32, 64] is an int."""
    annotation = field.annotation
    return (type(get_args(annotation)[0]) if get_origin(annotation) is Literal else annotation).__name__


def test_a_parameter_stands_in_two_places():
    notebook, fields = papermill.inspect_notebook(str(story.NOTEBOOK)), settings.Settings.model_fields
    faults = [f"{name} is in the notebook's parameters and not in plumbing/settings.py: add its type and limit there."
              for name in notebook.keys() - fields.keys()]
    faults += [f"{name} is in plumbing/settings.py and not in the notebook's parameters: add default and help there."
               for name in fields.keys() - notebook.keys()]
    for name in notebook.keys() & fields.keys():
        told, checked = notebook[name]["inferred_type_name"], kind(fields[name])
        if told != checked:
            faults.append(f"{name} is {told} in the notebook's parameters and {checked} in plumbing/settings.py.")
        choices = get_args(fields[name].annotation) if get_origin(fields[name].annotation) is Literal else ()
        if not all(str(choice) in notebook[name]["help"] for choice in choices):
            faults.append(f"{name} may be {settings.wanted(name)}, and its help in the notebook's parameters differs.")
    faults += [f"{name} has no help: add a comment behind it in the notebook's parameters."
               for name, about in notebook.items() if not about["help"]]
    assert not faults, " ".join(sorted(faults))
