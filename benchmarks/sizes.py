"""What larger faces take: parameters, images a second and memory, each size and batch in a process of its own.

    python -m benchmarks.sizes                 a Markdown table
    python -m benchmarks.sizes --steps 20      from more steps of each

The networks, the step and all parameters but image_size and batch_size are the notebook's own; the images are noise.
"""
import argparse
import contextlib
import copy
import io
import json
import subprocess
import sys
import time
from statistics import median

import torch

from plumbing import runs, speed
from plumbing.story import ROOT, definitions

from .throughput import synchronize

SIZES, BATCHES = (32, 64, 128), (16, 64)
PARAMETERS = {}  # over the notebook's defaults


def measure(image_size, batch_size, steps, parameters):
    """{name: number} of what steps of that size take here, with parameters over the notebook's defaults.

    The first step warms up and is not timed."""
    device = runs.choose_device()
    speed.keep_freed_memory()
    module = definitions(**parameters | {"image_size": image_size, "batch_size": batch_size, "device": device,
                                         "precision": speed.choose_precision("auto", device)[0]})
    with contextlib.redirect_stdout(io.StringIO()):
        D, G = module.build_network(module.d_conv_dim, module.g_conv_dim, module.z_size)
    G_average = copy.deepcopy(G)
    optimizers = [torch.optim.Adam(network.parameters(), fused=True) for network in (D, G)]
    images, seconds = torch.rand(batch_size, 3, image_size, image_size, device=device), []
    for step in range(1, steps + 2):
        start = time.perf_counter()
        module.play_step(D, G, *optimizers, images)
        module.look_ahead(*optimizers, step)
        module.move_average(G_average, G, step)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    if device.type in ("cuda", "xpu"):
        memory = torch.get_device_module(device).max_memory_allocated(device) / 1e6
    else:
        import resource  # not on Windows
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return {"D": sum(p.numel() for p in D.parameters()), "G": sum(p.numel() for p in G.parameters()),
            "images/s": batch_size / median(seconds[1:]), "MB": memory}


def table(results):
    """Lines of a Markdown table from {(image_size, batch_size): what measure gives}."""
    yield "| faces | batch | parameters of D, G | images/s | memory at its peak |"
    yield "|---|---|---|---|---|"
    for (size, batch), found in results.items():
        yield (f"| {size}x{size} | {batch} | {found['D'] / 1e6:.1f}, {found['G'] / 1e6:.1f} million "
               f"| {found['images/s']:.1f} | {found['MB']:,.0f} MB |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="steps that are timed of each (default: 5)")
    parser.add_argument("--one", type=int, nargs=2, metavar=("SIZE", "BATCH"), help="only this, as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, options.steps, PARAMETERS)))
        return
    results = {}
    for size in SIZES:
        for batch in BATCHES:
            print(f"{size}x{size}, batches of {batch}", file=sys.stderr)
            numbers = map(str, ("--one", size, batch, "--steps", options.steps))
            one = [sys.executable, "-m", "benchmarks.sizes", *numbers]
            done = subprocess.run(one, cwd=ROOT, stdout=subprocess.PIPE)
            if done.returncode:
                sys.exit(f"{size}x{size} in batches of {batch} did not come to its end.")
            results[size, batch] = json.loads(done.stdout)
    print(*table(results), sep="\n")
    device = runs.choose_device()
    whose = "what PyTorch holds on it" if device.type in ("cuda", "xpu") else "all of the process, PyTorch itself too"
    print(f"\n{runs.device_name(device)}, {speed.choose_precision('auto', device)[0]}, torch {torch.__version__}. "
          f"Memory is {whose}.")


if __name__ == "__main__":
    main()
