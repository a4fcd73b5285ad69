"""The notebook's own definitions as a module, for tests and benchmarks, so that none of them is copied."""
from pathlib import Path
from types import ModuleType

import nbformat
import torch

from .settings import Settings

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "face_generation.ipynb"


def cells(kind="code"):
    """The notebook's cells of a kind, in order."""
    return [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == kind]


def execute(module, tag):
    """Execute the cells with a tag in the namespace of module."""
    for cell in cells():
        if tag in cell.metadata.get("tags", []):
            exec(compile(cell.source, f"{NOTEBOOK.name}[{cell.id}]", "exec"), vars(module))


def definitions(**parameters):
    """A module of what the cells tagged `definitions` define, with parameters set over the notebook's defaults.

    Its functions look names up in it, as in the notebook: set an attribute to change what they see. device and
    precision are the derived ones, torch.device("cpu") and "fp32" unless given."""
    module = ModuleType("face_generation")
    execute(module, "definitions")
    vars(module).update({"device": torch.device("cpu"), "precision": "fp32"} | parameters)
    return module


def ready_to_train(**parameters):
    """definitions(**parameters) after the cells tagged `setup`: networks, optimizers, loaders of data_dir, state in run."""
    module = definitions(**parameters)
    module.parameters = {name: getattr(module, name) for name in Settings.model_fields}
    execute(module, "setup")
    return module
