"""The notebook's own definitions, for tests and benchmarks, so that none of them is a copy that could drift."""
from pathlib import Path
from types import SimpleNamespace

import nbformat
import torch

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "face_generation.ipynb"


def cells(kind="code"):
    """The notebook's cells of a kind, in order."""
    return [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == kind]


def definitions(**parameters):
    """The names that the cells tagged `definitions` define, with parameters set over the defaults.

    device and precision are what the notebook derives from them: torch.device("cpu") and "fp32" unless given."""
    names = {"__name__": "face_generation"}
    for cell in cells():
        tags = cell.metadata.get("tags", [])
        if "definitions" in tags:
            exec(compile(cell.source, f"{NOTEBOOK.name}[{cell.id}]", "exec"), names)
        if "parameters" in tags:
            names.update({"device": torch.device("cpu"), "precision": "fp32"} | parameters)
    return SimpleNamespace(**names), names
