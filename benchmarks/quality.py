"""The notebook's recipe beside that of most DCGAN courses: how far from real faces are theirs after equally many images?

    python -m benchmarks.quality                                           the embedded faces, in about ten minutes
    python -m benchmarks.quality --dataset PATH --images 375000 --seeds 3  as long as that takes; killed, it goes on
    python -m benchmarks.quality --also batch_size=64 --also ema_decay=0   the notebook's recipe with one change, too

The notebook's own loop plays all recipes, and its sliced Wasserstein distance to the faces held out measures them: lower
is better. 2,000 faces of every row are kept in the run's folder as faces-EPOCH.npy, for whoever has another measure.
"""
import argparse
import contextlib
import io
import json
import sys
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import yaml

import helpers
from plumbing import files, photos, runs, settings, speed
from plumbing.story import ROOT, definitions, ready_to_train

RECIPES = {"courses": yaml.safe_load((ROOT / "recipes" / "classic.yaml").read_text()), "notebook": {}}
MARKS = (1 / 12, 1 / 6, 1 / 3, 2 / 3, 1)  # shares of the images after which the faces are measured
FACES = 2000


def with_change(text):
    """{name: value} from text such as "batch_size=64", converted as the notebook converts its parameters."""
    name, _, value = text.partition("=")
    if name not in settings.Settings.model_fields:
        raise argparse.ArgumentTypeError(f"{name!r} is not a parameter of the notebook")
    try:
        return {name: settings.check({**vars(definitions()), name: value})[name]}
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def play(recipe, seed, images, data_dir, run):
    """Train with a recipe, a dict of parameters, on that many images, as whole epochs, in the folder run.

    Returns rows of what was measured, dicts of epoch, images, seconds of training and the distance swd. What the folder
    has is not done again."""
    resume = (Path(run) / "checkpoint.pt").exists()
    run, device = runs.start_run(run, resume), runs.choose_device()
    speed.keep_freed_memory()
    module = ready_to_train(data_dir=data_dir, run=run, resume=resume, seed=seed, device=device,
                            precision=speed.choose_precision("auto", device)[0], **recipe)
    rows = json.loads((run / "quality.json").read_text()) if resume and (run / "quality.json").exists() else []
    real = helpers.as_pictures(module.celeba_test_loader, FACES)
    an_epoch = len(module.celeba_train_loader) * module.batch_size
    for epoch in sorted({max(1, int(images * share / an_epoch)) for share in MARKS}):
        if epoch < len(module.state.samples) or epoch in [row["epoch"] for row in rows]:
            continue
        module.train(module.state, module.celeba_train_loader, epoch)
        with torch.random.fork_rng([]):  # the game goes on as if nobody had looked
            torch.manual_seed(seed)
            faces = module.generate(module.G_average, module.random_z(FACES))
        with files.whole_file(run / f"faces-{epoch}.npy") as file:
            np.save(file, faces)
        rows.append({"epoch": epoch, "images": epoch * an_epoch, "seconds": sum(module.state.seconds),
                     "swd": helpers.sliced_wasserstein(faces[:len(real)], real)})
        files.write_json(run / "quality.json", rows)
    return rows


def table(results):
    """Lines of a Markdown table from {recipe: [rows of each seed]}, and a sentence on what they come to."""
    yield "| recipe | epochs | images | seconds | distance, mean of the seeds (lowest to highest) |"
    yield "|---|---|---|---|---|"
    means = {}
    for recipe, seeds in results.items():
        for rows in zip(*seeds):
            found = [row["swd"] for row in rows]
            means.setdefault(recipe, []).append((rows[0]["images"], mean(found)))
            yield (f"| {recipe} | {rows[0]['epoch']} | {rows[0]['images']:,} | {mean(row['seconds'] for row in rows):,.0f} "
                   f"| {mean(found):.1f} ({min(found):.1f} to {max(found):.1f}) |")
    images, distance = means["courses"][-1]
    reached = next((seen for seen, value in means["notebook"] if value <= distance), None)
    yield ""
    yield (f"The courses' recipe is at {distance:.1f} after {images:,} images; the notebook's "
           + (f"is there after {reached:,} or fewer." if reached else "does not get there."))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default=str(ROOT / "processed_celeba_small.zip"), help="a zip or folder of faces")
    parser.add_argument("--images", type=int, default=70_000, help="images that each recipe sees (default: 70,000)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each recipe (default: 1)")
    parser.add_argument("--output", default="runs/quality", help="folder for the runs (default: runs/quality)")
    parser.add_argument("--also", type=with_change, action="append", default=[], metavar="NAME=VALUE",
                        help="the notebook's recipe with this change as well")
    options = parser.parse_args()
    data_dir, results = photos.prepare_data(options.dataset), {}
    recipes = RECIPES | {" ".join(map(str, *change.items())): RECIPES["notebook"] | change for change in options.also}
    for seed in range(options.seeds):
        for name, recipe in recipes.items():
            print(f"{name}, seed {seed}", file=sys.stderr)
            with contextlib.redirect_stdout(io.StringIO()):
                rows = play(recipe, seed, options.images, data_dir, f"{options.output}/{name}-{seed}")
            results.setdefault(name, []).append(rows)
    print(*table(results), sep="\n")
    device = runs.choose_device()
    print(f"\n{runs.device_name(device)}; "
          + ", ".join(f"{name} {version}" for name, version in runs.versions().items()))


if __name__ == "__main__":
    main()
