"""What each trick of the notebook is worth: the whole notebook run without it (mirroring: with it), on several seeds.

    python -m benchmarks.tricks --jobs 2                      the embedded faces; killed, it goes on where it was
    python -m benchmarks.tricks --dataset PATH --output runs/tricks-celeba --keep runs/tricks-celeba

papermill runs the notebook. The table and the picture (the same z for each recipe, seed 0) go to the folder --keep, as
tricks.md and tricks.png: the notebook shows those in assets.
"""
import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

import helpers
from benchmarks import compare
from plumbing.story import NOTEBOOK, ROOT

RECIPES = {
    "the defaults": {},
    "with mirroring": {"augment": "flip"},
    "no averaging": {"ema_decay": 0.0},
    "no noise": {"instance_noise": 0.0},
    "no doubt": {"label_smoothing": 0.0},
    "no slowing down": {"lr_decay": 0},
    "no lookahead": {"lookahead": 0},
    "no lookahead, half the rates": {"lookahead": 0, "d_lr": 0.0002, "g_lr": 0.0004},
    "beta1 0.9": {"beta1": 0.9},
    "equal steps": {"g_lr": 0.0004},
    "batches of 64": {"batch_size": 64},
    "DCGAN paper": yaml.safe_load((ROOT / "recipes" / "paper.yaml").read_text()),
}
COLUMNS = ("distance", "close pairs, times those of the data", "contrast")


def play(changes, seed, folder, dataset, threads):
    """The metrics of the notebook's run with changes, a dict of parameters, in folder; what is there is not done again."""
    done = folder / "metrics.json"
    if not done.exists():
        settings = changes | {"seed": seed, "output_dir": str(folder), "dataset": str(dataset),
                              "resume": (folder / "checkpoint.pt").exists()}
        command = [sys.executable, "-m", "papermill", str(NOTEBOOK), f"{folder}.ipynb", "--cwd", str(ROOT)]
        for name, value in settings.items():
            command += ["-p", name, str(value)]
        folder.parent.mkdir(parents=True, exist_ok=True)
        ended = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, capture_output=True,
                               text=True)
        if ended.returncode:
            sys.exit(f"{folder.name} did not come to its end: {ended.stderr.strip().splitlines()[-1]}")
        print(folder.name, file=sys.stderr)
    return json.loads(done.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default=str(ROOT / "processed_celeba_small.zip"), help="a zip or folder of faces")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each recipe (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, which share the cores (default: 1)")
    parser.add_argument("--output", default="runs/tricks", help="folder for the runs (default: runs/tricks)")
    parser.add_argument("--keep", default=str(ROOT / "assets"), help="folder for the table and the picture (default: assets)")
    options = parser.parse_args()
    output, threads = Path(options.output).resolve(), max(1, os.cpu_count() // options.jobs)
    wanted = [(name, seed) for seed in range(options.seeds) for name in RECIPES]
    with ThreadPoolExecutor(options.jobs) as pool:
        played = pool.map(lambda run: play(RECIPES[run[0]], run[1], output / f"{run[0].replace(' ', '-')}-{run[1]}",
                                           Path(options.dataset).resolve(), threads), wanted)
        results = {}
        for (name, _), metrics in zip(wanted, played):
            results.setdefault(name, []).append(metrics)
    one = results["the defaults"][0]
    images = one["steps"] * one["parameters"]["batch_size"]
    where = (f"{one['device_name'].split(',')[0]}, {one['precision']}, torch {one['versions']['torch']}, {options.jobs} runs at a "
             f"time on {os.cpu_count()} cores; {images:,} images, seeds 0 to {options.seeds - 1}")
    text = f"{compare.table(['recipe'], {(name,): seeds for name, seeds in results.items()}, COLUMNS)}\n\n{where}.\n"
    strips = {name: helpers.load_generator(output / f"{name.replace(' ', '-')}-0")(12) for name in results}
    compare.keep(options.keep, "tricks", text,
                 helpers.show_rows(strips, columns=12, title="The same z, each recipe's first seed"))
    print(text)


if __name__ == "__main__":
    main()
