"""A run's device, folder, state and bookkeeping."""
import contextlib
import copy
import itertools
import math
import os
import platform
import signal
import threading
import zlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace

import filelock
import numpy as np
import torch
import torchvision

from . import ranks
from .files import whole_file

COLUMNS = ("g_loss", "d_loss", "real_accuracy", "fake_accuracy")  # of a record, one a step
LOCKS = []  # of this process's runs: a lock ends with the last reference to it


def choose_device(name="auto"):
    """The torch.device for name; "auto" is this machine's accelerator, or the CPU if it has none.

    Raises ValueError if the named device is not on this machine."""
    if name == "auto":
        name = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch without CUDA
        raise ValueError(f"device is {str(name)!r}, and PyTorch does not find it here; use \"auto\" or "
                         "\"cpu\".") from error


def device_name(device):
    """The name that the maker gave this device, and how many ranks have one."""
    several = f", {ranks.count} ranks" if ranks.count > 1 else ""
    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device).get_device_name(device) + several
    with contextlib.suppress(OSError):
        for line in open("/proc/cpuinfo"):
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {torch.get_num_threads()} threads{several}"
    return f"{platform.processor() or platform.machine()} {device.type}, {torch.get_num_threads()} threads{several}"


def versions():
    """Names and versions of what computes the results."""
    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
            "numpy": np.__version__}


def start_run(output_dir, resume):
    """The folder output_dir as a Path, made and locked for this process until it ends; of a link, where it leads.

    A run that is already there is moved aside (to output_dir-1, -2, ...), unless resume goes on with it: then all of it
    stays until it has been accepted. If resume finds no checkpoint, it prints a line. Raises ValueError if another
    process runs in it and OSError if it cannot be made."""
    run = Path(os.path.expanduser(output_dir))
    try:
        run = run.resolve() if run.is_symlink() else run  # or two names of one folder would have two locks
        run.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(run.with_name(f".{run.name}.lock"), is_singleton=True, timeout=0)
        lock.acquire()
        LOCKS.append(lock)
        goes_on = resume and (run / "checkpoint.pt").exists()
        if resume and not goes_on:
            print(f"There is no checkpoint in {run} to go on from: the run starts.")
        if not goes_on and any((run / name).exists() for name in ("checkpoint.pt", "metrics.json")):
            aside = next(p for n in itertools.count(1) if not (p := run.with_name(f"{run.name}-{n}")).exists())
            run.rename(aside)
            print(f"The run that was in {run} is now in {aside}.")
        run.mkdir(exist_ok=True)
        for old in run.glob("*.partial"):  # of a run that was killed
            old.unlink(missing_ok=True)
    except filelock.Timeout as error:
        raise ValueError(f"Another run is writing to {run}; wait for its end or choose another output_dir.") from error
    except (OSError, ValueError) as error:  # ValueError: a folder without a name, as "." is
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"output_dir {str(output_dir)!r} cannot be used ({reason}).") from error
    return run


@contextlib.contextmanager
def interruptible():
    """Inside, the first interrupt (the notebook's stop button, Ctrl-C) sets the yielded event and lets the step end.

    With several ranks the event is set if it is on any, and all ask it equally often. A second interrupt interrupts at
    once, as anywhere else."""
    stop, usual = threading.Event(), signal.getsignal(signal.SIGINT)

    def remember(number, frame):
        stop.set()
        signal.signal(signal.SIGINT, usual)

    mine = threading.current_thread() is threading.main_thread()  # only the main thread may set handlers
    if mine:
        signal.signal(signal.SIGINT, remember)
    try:
        yield SimpleNamespace(is_set=lambda: ranks.anywhere(stop.is_set()))
    finally:
        if mine:
            signal.signal(signal.SIGINT, usual)


def which(device):
    """The arguments that say which device is meant: mps has only one, and takes none."""
    return () if device.type == "mps" else (device,)


def random_state(device):
    """The states of torch's generators on the CPU and on device: a list of one dict a rank."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state(*which(device))
    return ranks.gather(state)


def set_random_state(states, device):
    """Put torch's generators back into this rank's of the states that random_state gives."""
    state = states[ranks.rank]
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[device.type], *which(device))


@dataclass
class State:
    """All that a run needs to go on bit for bit. Training grows it, and a checkpoint holds it."""
    parts: dict  # name: network or optimizer
    parameters: dict
    data: str  # the fingerprint of the faces
    fixed_z: torch.Tensor
    order: torch.Tensor  # the state of the loader's generator before the epoch in progress
    random: list  # the random_state after the last step
    records: list = field(default_factory=list)  # one row of COLUMNS a batch: a step has one for each rank
    samples: list = field(default_factory=list)  # one uint8 array (count, height, width, 3) an epoch
    seconds: list = field(default_factory=list)  # of training, an epoch or a part of one each
    distances: list = field(default_factory=list)  # of [G, its average] to faces held out, after each epoch


# Parameters that may change on resume. dataset may be another path to the same faces, which their fingerprint tells.
MAY_CHANGE = {"output_dir", "n_epochs", "print_every", "device", "precision", "fid", "resume", "dataset"}


def fingerprint(training, held_out):
    """A text that tells the faces of one run from another's: the number to train on, and a checksum of both arrays."""
    return f"{len(training)} faces with checksum {zlib.crc32(held_out.tobytes(), zlib.crc32(training.tobytes())):08x}"


def save_checkpoint(path, state):
    """Write state to path. The run is not complete with it: a metrics.json of what it was before goes."""
    Path(path).with_name("metrics.json").unlink(missing_ok=True)
    parts = {name: part.state_dict() for name, part in state.parts.items()}
    with whole_file(path) as file:
        torch.save({**vars(state), "parts": parts, "samples": list(map(torch.from_numpy, state.samples))}, file)


def read_checkpoint(path, parts, wanted):
    """Put the networks and optimizers of the checkpoint at path into parts; return all that it holds.

    Raises ValueError with one sentence, before anything is changed, if the file is missing, is not a checkpoint, does
    not hold parts of these shapes, has more epochs than wanted, or was made with other values than wanted (of
    parameters and of data)."""
    otherwise = "start without it (resume false, start_from \"\")"
    try:
        kept = dict(torch.load(path, map_location="cpu", weights_only=True))
        settings = {"data": kept["data"], **kept["parameters"]}
        assert kept.keys() >= {field.name for field in fields(State)}
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; {otherwise}.") from None
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} is not a checkpoint of this notebook, or is damaged; move it away and "
                         f"{otherwise}.") from error
    other = [f"{name} was {settings.get(name)!r} and is {value!r}" for name, value in wanted.items()
             if name not in MAY_CHANGE and settings.get(name) != value]
    if other:
        raise ValueError(f"{path} was made with other settings: {'; '.join(other)}. Set them back, or {otherwise}.")
    if (done := len(kept["samples"])) > wanted.get("n_epochs", done):
        raise ValueError(f"{path} holds {done} epochs and n_epochs is {wanted['n_epochs']}; set it to {done} or more, or "
                         f"{otherwise}.")
    try:
        for name, part in parts.items():
            copy.deepcopy(part).load_state_dict(kept["parts"][name])  # a trial: none may change unless all can
    except Exception as error:
        raise ValueError(f"{path} does not hold the state of these networks and optimizers; move it away and "
                         f"{otherwise}.") from error
    for name, part in parts.items():
        part.load_state_dict(kept["parts"][name])
    return kept


def load_checkpoint(path, state):
    """Put the checkpoint at path into state. Raises ValueError as read_checkpoint does.

    Another number of ranks goes on as well, each rank that is new with its own random numbers, and a line says so."""
    kept = read_checkpoint(path, state.parts, {**state.parameters, "data": state.data})
    for name in ("records", "seconds", "distances", "order"):
        setattr(state, name, kept[name])
    random = kept["random"] if isinstance(kept["random"], list) else [kept["random"]]  # a dict before there were ranks
    if len(random) != ranks.count:
        print(f"{path} is of {len(random)} ranks; going on with {ranks.count} will not be bit for bit the same run.")
    state.random = (random + state.random[len(random):])[:ranks.count]
    state.samples = [sample.numpy() for sample in kept["samples"]]
    state.fixed_z = kept["fixed_z"].to(state.fixed_z.device)


def load_networks(folder, parts, parameters):
    """Put the networks that the run in folder has reached into parts. Raises ValueError as read_checkpoint does."""
    shape = {name: parameters[name] for name in ("image_size", "z_size", "d_conv_dim", "g_conv_dim")}
    read_checkpoint(Path(os.path.expanduser(folder), "checkpoint.pt"), parts, shape)


def take_up(path, state, resume, start_from):
    """Put into state what the run begins with: the checkpoint at path if resume finds one, else the networks that the
    run in the folder start_from has reached, if it is not "". Raises ValueError as read_checkpoint does."""
    if resume and Path(path).exists():
        load_checkpoint(path, state)
    elif start_from:
        load_networks(start_from, {name: state.parts[name] for name in ("D", "G", "G_average")}, state.parameters)


def collect(recent, records, path, per_epoch=None):
    """Move the rows in recent (tensors on the device) of all ranks to the end of records (lists of float), in one go.

    recent is of one epoch, in which only per_epoch rows count: in its last step two ranks may play one batch. Returns
    the last as {column: value}. Raises FloatingPointError if one is NaN or infinite: from there the networks are lost,
    the checkpoint at path is not."""
    rows = ranks.gather(torch.stack(recent).tolist() if recent else [])
    recent.clear()
    left = per_epoch and per_epoch - len(records) % per_epoch
    for row in itertools.islice(itertools.chain(*zip(*rows, strict=True)), left):
        if not all(map(math.isfinite, row)):
            last = ", ".join(f"{value:.3g}" for value in records[-1][:2]) if records else "none"
            raise FloatingPointError(
                f"The losses are no longer finite at step {len(records) + 1} (before: {last}). The last good state is "
                f"in {path}{'' if Path(path).exists() else ', once an epoch is complete'}; try lower learning rates.")
        records.append(row)
    return dict(zip(COLUMNS, records[-1])) if records else {}


def columns(records):
    """records as {column: array of one value a step}."""
    return dict(zip(COLUMNS, np.array(records).T))


def means(records):
    """{column: mean over records}."""
    return {name: float(values.mean()) for name, values in columns(records).items()}


def has_won(records):
    """True if D was right on nearly all images, real and fake, of records: G then learns nothing."""
    mean = means(records)
    return min(mean["real_accuracy"], mean["fake_accuracy"]) > 0.98


def epoch_line(state, n_epochs, first, batch_size):
    """One line of text on the epoch that has just ended; its steps since the run's start or resume begin at first."""
    records = state.records[first:]
    mean, speed = means(records), len(records) * batch_size / state.seconds[-1]
    won = "  D has won: it is right on nearly all images, and G learns nothing" if has_won(records) else ""
    return (f"epoch {len(state.samples):2}/{n_epochs}  loss of D {mean['d_loss']:.3f}, of G {mean['g_loss']:.3f}  "
            f"right on real {mean['real_accuracy']:.0%}, fake {mean['fake_accuracy']:.0%}  "
            f"distance {state.distances[-1][0]:.1f}, average {state.distances[-1][1]:.1f}  {speed:.0f} images/s{won}")


def first_and_last(records):
    """{column: {"first tenth": mean, "last tenth": mean}} of records."""
    tenth = max(1, len(records) // 10)
    first, last = means(records[:tenth]), means(records[-tenth:])
    return {name: {"first tenth": first[name], "last tenth": last[name]} for name in COLUMNS}


def by_epoch(state, per_epoch):
    """One dict an epoch: the means of its columns, and the distances of G and of its average after it."""
    return [means(state.records[epoch * per_epoch:(epoch + 1) * per_epoch]) | {"swd_of_G": of_G, "swd": of_average}
            for epoch, (of_G, of_average) in enumerate(state.distances)]


def report(state, device, precision, per_epoch):
    """What metrics.json says of a run but for its measures: how it was made, its speed, its losses and accuracies, means
    over the last tenth of the steps, and each epoch's."""
    steps, batch_size, seconds = len(state.records), state.parameters["batch_size"], sum(state.seconds)
    return {"parameters": state.parameters, "versions": versions(), "device": str(device), "precision": precision,
            "device_name": device_name(device), "steps": steps, "train_seconds": seconds,
            "images_per_second": steps * batch_size / seconds, **means(state.records[-max(1, steps // 10):]),
            "epochs": by_epoch(state, per_epoch)}
