"""How fast the notebook trains on this machine, beside the loop that most DCGAN courses teach.

    python -m benchmarks.throughput           a table, in about four minutes
    python -m benchmarks.throughput --json    the same for machines

Both train the same two networks on the embedded faces, in turns, so that a machine that slows down slows both: the
courses' loop in its batches of 128, the notebook's as its defaults are and in batches of 128. The networks, the steps and
the loop are imported from the notebook; only the courses' loop is written here.
"""
import argparse
import contextlib
import io
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import transforms
from torchvision.datasets import ImageFolder

from plumbing import photos, runs, speed
from plumbing.story import ROOT, definitions, ready_to_train

BATCH, STEPS, ROUNDS = 128, 12, 5  # of the courses, and how many of its steps a round has
KINDS = {"convolutions, backward": "convolution_backward", "convolutions": "mkldnn_convolution _convolution convolution",
         "matrix products": "mm addmm bmm", "copies and casts": "copy_", "sums": "add add_ sum",
         "optimizers": "_fused_adam_", "the average": "lerp_"}  # a kind: PyTorch's names of its operators
ZIP = ROOT / "processed_celeba_small.zip"


def synchronize(device):
    """Wait until an accelerator has done what it was told; a processor has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def courses_loop(module, folder, batch):
    """The loop of most DCGAN courses on the notebook's networks, in such batches; an iterator whose next() is a step.

    Every epoch decodes every file again, z comes from NumPy, G's step draws fakes of its own, D's step sends gradients
    through G that nobody uses, and all of it is fp32 in torch's default layout."""
    device, lr, betas = module.device, 1e-3, (0.5, 0.999)
    faces = ImageFolder(folder, transforms.Compose([transforms.Resize(32), transforms.ToTensor()]))
    loader = torch.utils.data.DataLoader(faces, batch, shuffle=True, drop_last=True)
    D = module.Discriminator(64).apply(module.weights_init_normal).to(device)
    G = module.Generator(100, 64).apply(module.weights_init_normal).to(device)
    d_optimizer, g_optimizer = (torch.optim.Adam(network.parameters(), lr, betas) for network in (D, G))
    loss = nn.BCEWithLogitsLoss()
    ones, zeros = torch.ones(batch, device=device), torch.zeros(batch, device=device)

    def fakes():
        return G(torch.from_numpy(np.random.uniform(-1, 1, (batch, 100))).float().to(device))

    steps = itertools.count()
    while True:
        for real_images, _ in loader:
            real_images = (2 * real_images - 1).to(device)
            d_optimizer.zero_grad()
            d_loss = loss(D(real_images).squeeze(), ones) + loss(D(fakes()).squeeze(), zeros)
            d_loss.backward()
            d_optimizer.step()
            g_optimizer.zero_grad()
            g_loss = loss(D(fakes()).squeeze(), ones)
            g_loss.backward()
            g_optimizer.step()
            if next(steps) % 50 == 0:
                d_loss.item(), g_loss.item()  # what the courses print
            yield


def set_up(folder, run, precision, device, batch=None, **parameters):
    """The notebook, ready to train with its own defaults but for batch, if given, and parameters."""
    run.mkdir()
    return ready_to_train(**parameters | ({"batch_size": batch} if batch else {}) | {
        "precision": precision, "device": device, "data_dir": folder, "run": run})


def rate_of_courses(loop, device, batch, steps):
    """Images a second over steps of the courses' loop, its first one not counted."""
    next(loop)
    synchronize(device)
    start = time.perf_counter()
    for _ in range(steps - 1):
        next(loop)
    synchronize(device)
    return (steps - 1) * batch / (time.perf_counter() - start)


def rate_of_notebook(module):
    """Images a second over an epoch of the notebook's train, from the end of its first step to that of its last."""
    ends, move_average, steps = [], module.move_average, len(module.celeba_train_loader)

    def last_of_the_step(*arguments):
        move_average(*arguments)
        if len(ends) in (0, steps - 1):
            synchronize(module.device)
        ends.append(time.perf_counter())

    module.move_average = last_of_the_step
    module.train(module.state, module.celeba_train_loader, len(module.state.samples) + 1)
    module.move_average = move_average
    return (steps - 1) * module.batch_size / (ends[steps - 1] - ends[0])


def share_outside_the_step(module):
    """The share of an epoch, from the call of train to its return, in which no part of a step is computed."""
    inside, G = [], module.G

    def timed(function):
        def timing(*arguments, **options):
            start = time.perf_counter()
            result = function(*arguments, **options)
            synchronize(module.device)
            inside.append(time.perf_counter() - start)
            return result
        return timing

    for name in ("discriminator_step", "generator_step", "move_average"):
        setattr(module, name, timed(getattr(module, name)))
    G.forward = timed(G.forward)
    start = time.perf_counter()
    module.train(module.state, module.celeba_train_loader, len(module.state.samples) + 1)
    return 1 - sum(inside) / (time.perf_counter() - start)


class Products(TorchDispatchMode):
    """Inside, keeps every convolution and matrix product, forwards and backwards, that torch is asked for."""

    names = ("convolution", "convolution_backward", "mm", "addmm", "bmm")
    kinds = {getattr(torch.ops.aten, name).default for name in names}

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function in self.kinds:
            self.calls.append((function, arguments))
        return function(*arguments, **(options or {}))


def floor_of_the_step(module):
    """Seconds that no step can do without: its convolutions and matrix products, and a step of both optimizers, which
    reads and writes every weight once. Each is run alone, in the same precision and layout, and the best of three counts."""
    real_images = module.scale(next(iter(module.celeba_train_loader))).contiguous(memory_format=torch.channels_last)
    with Products() as seen:
        with module.autocast():
            fake_images = module.G(module.random_z(module.batch_size))
        module.discriminator_step(module.D, module.d_optimizer, real_images, fake_images)
        module.generator_step(module.D, module.G, module.g_optimizer, fake_images)
    total = 0
    for function, arguments in [*seen.calls, (module.d_optimizer.step, ()), (module.g_optimizer.step, ())]:
        taken = []
        for _ in range(3):
            synchronize(module.device)
            start = time.perf_counter()
            function(*arguments)
            synchronize(module.device)
            taken.append(time.perf_counter() - start)
        total += min(taken)
    return total


def profile(module):
    """{a kind of operator: its share of the processor's time in an epoch of the notebook's train}, the rest last."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        rate_of_notebook(module)
    times = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in seen.key_averages()}
    shares = {kind: sum(times.get(name, 0) for name in names.split()) / sum(times.values()) for kind, names in KINDS.items()}
    return shares | {"all else": 1 - sum(shares.values())}


def measure(device):
    """All that the table shows, as a dict; times in seconds, rates in images a second."""
    folder = photos.unzip(ZIP)
    files = photos.image_files(folder)
    twice, few = Path("twice"), Path("few")  # few: as many faces as a round has steps to take, and the eighth held out
    for copy, some in ((twice / "1", files), (twice / "2", files), (few, files[:-(-STEPS * BATCH * 8 // 7)])):
        copy.mkdir(parents=True)
        for file in some:
            shutil.copy(file, copy)
    results = {"decoded_files": 2 * len(files)}
    for name in ("decoding", "from_cache"):
        start = time.perf_counter()
        photos.load_images(twice, 32)
        results[name] = time.perf_counter() - start

    auto, results["why"] = speed.choose_precision("auto", device)
    results["precision"] = auto
    loops = {"courses": courses_loop(definitions(device=device), files[0].parent.parent, BATCH)}
    for precision, batch in ((auto, None), (auto, BATCH), ("fp32", BATCH)):
        name = f"{precision}, batches of {batch}" if batch else "defaults"
        if name not in loops:
            loops[name] = set_up(few, Path(f"run-{len(loops)}"), precision, device, batch)
    rates = {name: [] for name in loops}
    results |= {"rates": rates, "floor": {name: [] for name in loops if name != "courses"},
                "batches": {name: BATCH if name == "courses" else loop.batch_size for name, loop in loops.items()}}
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}", file=sys.__stderr__)
        for name, loop in loops.items():
            rates[name].append(rate_of_courses(loop, device, BATCH, STEPS) if name == "courses"
                               else rate_of_notebook(loop))
            if name != "courses":
                results["floor"][name].append(floor_of_the_step(loop))
    results["profile"] = profile(loops["defaults"])
    results["outside"] = share_outside_the_step(set_up(folder, Path("run-epoch"), auto, device))
    return results


def spread(values, digits, unit=""):
    """The median of values, and the lowest and highest, as text."""
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def table(results):
    """The results as lines of a Markdown table."""
    rates, batches = results["rates"], results["batches"]
    yield "| measured | median (lowest to highest round) |"
    yield "|---|---|"
    yield f"| the courses' loop, fp32, batches of {batches['courses']} | {spread(rates['courses'], 0, ' images/s')} |"
    for name, floor in results["floor"].items():
        what = f"{results['precision']}, batches of {batches[name]} (the defaults)" if name == "defaults" else name
        over = [batches[name] / rate / alone for rate, alone in zip(rates[name], floor)]
        yield f"| the notebook's, {what} | {spread(rates[name], 0, ' images/s')} |"
        yield f"| ratio | {spread([ours / theirs for ours, theirs in zip(rates[name], rates['courses'])], 2)} |"
        yield f"| its step, over its convolutions, its products and one pass of the optimizers | {spread(over, 2)} |"
    yield "| time of a default step | " + ", ".join(f"{kind} {share:.0%}" for kind, share in results["profile"].items()) + " |"
    yield f"| share of an epoch of the embedded faces outside the step | {results['outside']:.1%} |"
    yield (f"| {results['decoded_files']:,} JPEGs of 64x64 to a tensor; again, from its cache | "
           f"{results['decoding']:.1f} s; {results['from_cache']:.2f} s |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    as_json, here = parser.parse_args().json, os.getcwd()
    device = runs.choose_device()
    speed.keep_freed_memory()  # for both loops: it cannot be taken back
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()), \
            contextlib.redirect_stderr(io.StringIO()):
        os.chdir(scratch)
        try:
            results = measure(device)
        finally:
            os.chdir(here)
    results |= {"device": runs.device_name(device), "versions": runs.versions()}
    if as_json:
        print(json.dumps(results, indent=1))
    else:
        print(*table(results), sep="\n")
        print(f"\n{results['device']}; precision auto is {results['precision']}: {results['why']}; "
              + ", ".join(f"{name} {version}" for name, version in results["versions"].items()))


if __name__ == "__main__":
    main()
