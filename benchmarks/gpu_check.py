"""Does the notebook do on this machine's GPU what it does on a processor, and how fast? One Markdown table, to paste.

    python -m benchmarks.gpu_check                 on the accelerator that PyTorch finds
    python -m benchmarks.gpu_check --device cpu    the same on the processor, which tries the program itself

It plays one step on both kinds of device, a run that is resumed, the notebook's loop beside the one that most DCGAN
courses teach, an epoch of 90,000 faces and the default run. A check that fails is a row, and the others go on.
"""
import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch

from plumbing import photos, runs, speed
from plumbing.story import NOTEBOOK, ROOT, definitions, ready_to_train

from . import throughput

FACES, BATCHES, ROUNDS = 90_000, (16, 128), 3
PARAMETERS = {}  # over the notebook's defaults, which are what is checked
TOLERANCES = {"fp32": 1e-3, "bf16": 0.25}  # of gradients, relative; fp32 without TF32; a processor's bf16 is 0.1 off


def default_run(device, precision, folder):
    """The notebook itself, by papermill, on the embedded faces."""
    given = PARAMETERS | {"dataset": folder, "device": device, "output_dir": Path("run").resolve()}
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--cwd", str(ROOT), str(NOTEBOOK), "run.ipynb"]
    command += [word for name, value in given.items() for word in ("-p", name, str(value))]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(ended.stderr.strip().splitlines()[-1])
    metrics, claims = json.loads(Path("run/metrics.json").read_text()), Path("run.ipynb").read_text()
    measures, broken = metrics["measures"], claims.count('"DOES NOT HOLD: ')
    yield ("the default run: images/s, seconds of training",
           f"{metrics['images_per_second']:.0f}, {metrics['train_seconds']:.1f}", "")
    yield ("its distance (that of training faces, of the untrained generator)",
           f"{measures['swd']:.1f} ({measures['swd_floor']:.1f}, {measures['swd_untrained']:.1f})", "")
    yield ("claims of its verdict that do not hold", broken, 0)


def one_step(device, precision):
    """The losses and accuracies of a step, and the gradients of D and G as two vectors: equal numbers on any device."""
    module = definitions(**PARAMETERS | {"device": device, "precision": precision, "instance_noise": 0.0})
    torch.manual_seed(0)
    D, G = module.build_network(module.d_conv_dim, module.g_conv_dim, module.z_size)
    z, images = 2 * torch.rand(64, module.z_size) - 1, torch.rand(64, 3, 32, 32)
    module.random_z = lambda count: z.to(device)
    optimizers = [torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999), fused=True) for network in (D, G)]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        row = module.play_step(D, G, *optimizers, images.to(device))
    return [row.cpu(), *(torch.cat([p.grad.flatten() for p in network.parameters()]).cpu() for network in (D, G))]


def same_step(device, precision, folder):
    """One step on device beside the same on the processor, in fp32 and in precision."""
    if device.type == "cpu" and precision == "fp32":
        yield "one step beside the processor's", "not run: this is the processor", ""
        return
    wanted = one_step(torch.device("cpu"), "fp32")
    for kind in dict.fromkeys((("fp32",) if device.type != "cpu" else ()) + (precision,)):
        found = one_step(device, kind)
        far = [((a - b).norm() / b.norm()).item() for a, b in zip(found[1:], wanted[1:])]
        yield (f"one step in {kind} beside the processor's in fp32: gradients of D and G, relative difference",
               f"{far[0]:.1e}, {far[1]:.1e}", f"under {TOLERANCES[kind]:g}")
        yield ("its losses of G and D", ", ".join(f"{a:.4f} ({b:.4f})" for a, b in zip(found[0][:2], wanted[0][:2])),
               "as in brackets")


def played(device, precision, folder, *ends):
    """All numbers that a run has reached that is stopped and resumed after each of ends, numbers of epochs."""
    with tempfile.TemporaryDirectory() as run:
        for part, end in enumerate(ends):
            module = ready_to_train(**{"batch_size": 64, "augment": "flip shift"} | PARAMETERS | {
                "device": device, "precision": precision, "data_dir": folder, "run": Path(run), "resume": part > 0})
            module.train(module.state, module.celeba_train_loader, end)
    networks = [value.cpu() for part in (module.D, module.G, module.G_average) for value in part.state_dict().values()]
    return [torch.tensor(module.state.records), *networks]


def resumed(device, precision, folder):
    """A run that is resumed beside one that never stopped, as torch computes by itself and deterministically."""
    for asked, name in ((False, ""), (True, " with torch.use_deterministic_algorithms")):
        torch.use_deterministic_algorithms(asked, warn_only=True)
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                equal = all(map(torch.equal, *(played(device, precision, folder, *ends) for ends in ((2,), (1, 2)))))
        finally:
            torch.use_deterministic_algorithms(False)
        yield f"a run that is resumed is one that never stopped, bit for bit{name}", "yes" if equal else "no", "yes"
    without = {str(warning.message).split(" ")[0] for warning in said if "deterministic" in str(warning.message)}
    yield "operations without a deterministic form", ", ".join(sorted(without)) or "none", "none"


def speeds(device, precision, folder):
    """The notebook's loop and the courses', and the memory that the notebook's takes."""
    for batch in BATCHES:
        courses = throughput.courses_loop(definitions(device=device), folder, batch)
        module = throughput.set_up(folder, Path(f"speed-{batch}"), precision, device, batch, **PARAMETERS)
        steps, measured = len(module.celeba_train_loader), device.type in ("cuda", "xpu")
        if measured:
            torch.get_device_module(device).reset_peak_memory_stats(device)
        ours = [throughput.rate_of_notebook(module) for _ in range(ROUNDS)]
        peak = torch.get_device_module(device).max_memory_allocated(device) / 1e6 if measured else None
        theirs = [throughput.rate_of_courses(courses, device, batch, steps) for _ in range(ROUNDS)]
        yield (f"images/s in batches of {batch}: the notebook, the courses' loop, ratio",
               f"{median(ours):,.0f}, {median(theirs):,.0f}, {median(ours) / median(theirs):.1f}", "")
        yield (f"memory of the device at its peak, batches of {batch}",
               f"{peak:,.0f} MB" if measured else f"not run: {device.type} does not count it", "")


def epoch(device, precision, folder):
    """An epoch of FACES images of noise, as long as of faces."""
    module = throughput.set_up(folder, Path("epoch"), precision, device, BATCHES[0], **PARAMETERS)
    faces = torch.randint(0, 256, (FACES * 8 // 7 + 1, 3, 32, 32), dtype=torch.uint8)  # an eighth is held out
    module.photos = SimpleNamespace(load_images=lambda *_: faces, check_faces=lambda *_: None)
    loader, _ = module.get_dataloader(BATCHES[0], 32, "")
    module.train(module.state, loader, 1)
    images, seconds = len(loader) * BATCHES[0], module.state.seconds[-1]
    yield (f"an epoch of {images:,} faces in batches of {BATCHES[0]}: seconds, images/s",
           f"{seconds:.1f}, {images / seconds:,.0f}", "")


CHECKS = {"one step beside the processor's": same_step, "a run that is resumed": resumed, "speed": speeds,
          "an epoch of many faces": epoch, "the default run": default_run}


def rows(device):
    """(what, found, wanted) of each check; what a check printed is left out, and what it raised is a row."""
    precision, why = speed.choose_precision("auto", device)
    yield "device", f"{device}: {runs.device_name(device)}", ""
    yield "precision", f"{precision}: {why}", ""
    yield "versions", ", ".join(f"{name} {version}" for name, version in runs.versions().items()), ""
    folder = photos.unzip(throughput.ZIP, ".").resolve()
    for name, check in CHECKS.items():
        print(name, file=sys.__stderr__)
        start = time.perf_counter()
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                yield from check(device, precision, folder)
        except Exception as error:  # whatever it is: the other checks still tell something
            yield name, f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:200]}", ""
        print(f"  {time.perf_counter() - start:.0f} s", file=sys.__stderr__)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, mps, xpu or cpu (default: what PyTorch finds)")
    options, here = parser.parse_args(), os.getcwd()
    try:
        device = runs.choose_device(options.device)
    except ValueError as error:
        parser.exit(1, f"{error}\n")
    if device.type == "cpu" and options.device == "auto":
        parser.exit(1, "PyTorch finds no accelerator here, so nothing was run; --device cpu tries the program.\n")
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        try:
            lines = [f"| {what} | {found} | {wanted} |" for what, found, wanted in rows(device)]
        finally:
            os.chdir(here)
    print("| what | found | wanted |", "|---|---|---|", *lines, sep="\n")


if __name__ == "__main__":
    main()
