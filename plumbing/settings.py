"""Types and limits of the notebook's parameters. Their names, defaults and help are in the notebook's own cell."""
import importlib.util
import os
import re
import reprlib
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError


def no_switch(value):
    """value, unless it is True or False, which Python counts as numbers."""
    if isinstance(value, bool):
        raise ValueError("true and false are not numbers")
    return value


Whole = Annotated[int, BeforeValidator(no_switch)]
Real = Annotated[float, BeforeValidator(no_switch)]
Positive = Annotated[Whole, Field(ge=1)]
Rate = Annotated[Real, Field(gt=0)]
Share = Annotated[Real, Field(ge=0, lt=1)]
PATH = r"^[^\x00]*[^\s\x00][^\x00]*$"  # not blank, no NUL


class Settings(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    dataset: str = Field(pattern=PATH, description="a zip file, a folder of images or \"celeba\"")
    output_dir: str = Field(pattern=PATH, description="the path of a folder")
    image_size: Annotated[Literal[32, 64, 128], BeforeValidator(TypeAdapter(Whole).validate_python)]
    batch_size: Whole = Field(ge=4)  # the statistics of fewer images say nothing
    n_epochs: Positive
    print_every: Positive
    z_size: Positive
    d_conv_dim: Positive
    g_conv_dim: Positive
    d_lr: Rate
    g_lr: Rate
    lr_decay: Whole = Field(ge=0)
    lookahead: Whole = Field(ge=0)
    beta1: Share
    beta2: Share
    label_smoothing: Real = Field(ge=0, lt=0.4)  # near a half the label of real images tells D, and the inline tests, nothing
    ema_decay: Share
    augment: Literal["", "flip", "shift", "flip shift"]
    instance_noise: Real = Field(ge=0)
    seed: Whole = Field(ge=0, lt=2**32)
    device: Annotated[str, BeforeValidator(str)] = Field(  # a torch.device once the next cell has run
        pattern="^(auto|cuda|mps|xpu|cpu)(:[0-9]+)?$", description="auto, cuda, mps, xpu or cpu")
    precision: Literal["auto", "fp32", "bf16"]
    fid: bool
    start_from: str = Field(pattern=f"^$|{PATH}", description="the folder of a run or \"\"")
    resume: bool


NOUNS = {int: "a whole number", float: "a number", bool: "true or false"}
LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def wanted(name):
    """What the parameter name must be, in words: "a number, at least 0, less than 1"."""
    field = Settings.model_fields[name]
    if field.description:
        return field.description
    if get_origin(field.annotation) is Literal:
        *others, last = [value if str(value) else '""' for value in get_args(field.annotation)]
        return f"{', '.join(map(str, others))} or {last}"
    limits = [f"{words} {getattr(limit, key)}" for limit in field.metadata for key, words in LIMITS.items()
              if hasattr(limit, key)]
    return ", ".join([NOUNS[field.annotation], *limits])


def check(namespace):
    """The parameters in namespace (the notebook's globals), checked and converted: a dict of the names in Settings.

    papermill injects text as it comes ("false", "1e-3") and only warns of unknown names, in a cell that begins with
    "# Parameters". Raises ValueError with one sentence for each wrong parameter."""
    injected = next((cell for cell in reversed(namespace.get("In", [])) if cell.startswith("# Parameters")), "")
    faults = [f"{name} is not a parameter of this notebook, which has {', '.join(Settings.model_fields)}."
              for name in re.findall(r"^(\w+) = ", injected, re.MULTILINE) if name not in Settings.model_fields]
    try:
        checked = Settings(**{name: namespace.get(name) for name in Settings.model_fields}).model_dump()
    except ValidationError as error:
        wrong = dict.fromkeys(fault["loc"][0] for fault in error.errors())
        faults += [f"{name} must be {wanted(name)}; it is {reprlib.repr(namespace.get(name))}." for name in wrong]
    if not faults:
        faults = list(conflicts(checked))
    if faults:
        raise ValueError(" ".join(faults))
    return checked


def holds_run(folder):
    """Whether folder holds a run to go on from."""
    return os.path.exists(os.path.join(os.path.expanduser(folder), "checkpoint.pt"))  # Path.exists raises on long names


def lies_in(path, folder):
    """Whether path is folder or something below it, wherever links lead."""
    path, folder = (Path(os.path.realpath(os.path.expanduser(one))) for one in (path, folder))
    return path.is_relative_to(folder)


def conflicts(checked):
    """One sentence for each parameter that is right by itself but cannot be met here."""
    if checked["fid"] and not importlib.util.find_spec("torch_fidelity"):
        yield "fid is true and needs a package: pip install torch-fidelity, or set fid to false."
    dataset, output, start = (checked[name] for name in ("dataset", "output_dir", "start_from"))
    if dataset != "celeba" and lies_in(dataset, output):
        yield "dataset lies in output_dir, which is moved aside when a run starts there; choose another output_dir."
    elif os.path.isdir(os.path.expanduser(dataset)) and lies_in(output, dataset):
        yield "output_dir lies in dataset, where a run's pictures would be taken for faces; choose another output_dir."
    if start and not (checked["resume"] and holds_run(output)):
        if not holds_run(start):
            yield (f"start_from is {start!r}, which does not hold a checkpoint.pt; give the folder of a "
                   "run, or \"\".")
        elif lies_in(start, output):
            yield "start_from lies in output_dir, which is moved aside when a run starts there; choose another output_dir."
