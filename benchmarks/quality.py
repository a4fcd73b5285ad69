"""The notebook's recipe beside that of most DCGAN courses: how far from real faces are theirs after equally many images?

    python benchmarks/quality.py                                           the embedded faces, in about ten minutes
    python benchmarks/quality.py --dataset PATH --images 375000 --seeds 3  as long as that takes; killed, it goes on
    python benchmarks/quality.py --also batch_size=64 --also ema_decay=0   the notebook's recipe with one change, too

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

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import helpers  # noqa: E402
from notebook import definitions, execute  # noqa: E402

RECIPES = {
    "courses": {"batch_size": 128, "d_lr": 1e-3, "g_lr": 1e-3, "lr_decay": 0, "label_smoothing": 0.0, "ema_decay": 0.0,
                "augment": "", "instance_noise": 0.0},
    "notebook": {},
}
MARKS = (1 / 12, 1 / 6, 1 / 3, 2 / 3, 1)  # shares of the images after which the faces are measured
FACES = 2000


def with_change(text):
    """{name: value} from text such as "batch_size=64", converted as the notebook converts its parameters."""
    name, _, value = text.partition("=")
    if name not in helpers.RULES:
        raise argparse.ArgumentTypeError(f"{name!r} is no parameter of the notebook")
    try:
        return {name: helpers.convert(value, helpers.RULES[name][0])}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def play(recipe, seed, images, data_dir, run):
    """Train with a recipe, a dict of parameters, on that many images, as whole epochs, in the folder run; rows of what was measured.

    A row is a dict of epoch, images, seconds of training and the distance swd. What the folder has is not done again."""
    resume = (Path(run) / "checkpoint.pt").exists()
    run, device = helpers.start_run(run, resume), helpers.choose_device()
    helpers.keep_freed_memory()
    module = definitions(data_dir=data_dir, run=run, resume=resume, seed=seed, device=device,
                         precision=helpers.choose_precision("auto", device)[0], **recipe)
    module.parameters = {name: getattr(module, name) for name in helpers.RULES}
    execute(module, "setup")
    rows = json.loads((run / "quality.json").read_text()) if resume and (run / "quality.json").exists() else []
    real = helpers.as_pictures(module.celeba_test_loader, FACES)
    an_epoch = len(module.celeba_train_loader) * module.batch_size
    for epoch in sorted({max(1, int(images * share / an_epoch)) for share in MARKS}):
        if epoch < len(module.samples) or epoch in [row["epoch"] for row in rows]:
            continue
        module.train(module.D, module.G, epoch)
        with torch.random.fork_rng([]):  # the game goes on as if nobody had looked
            torch.manual_seed(seed)
            faces = module.generate(module.G_average, module.random_z(FACES))
        with helpers.whole_file(run / f"faces-{epoch}.npy") as file:
            np.save(file, faces)
        rows.append({"epoch": epoch, "images": epoch * an_epoch, "seconds": sum(module.seconds),
                     "swd": helpers.sliced_wasserstein(faces[:len(real)], real)})
        helpers.save_json(run / "quality.json", rows)
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
    data_dir, results = helpers.prepare_data(options.dataset), {}
    recipes = RECIPES | {" ".join(map(str, *change.items())): RECIPES["notebook"] | change for change in options.also}
    for seed in range(options.seeds):
        for name, recipe in recipes.items():
            print(f"{name}, seed {seed}", file=sys.stderr)
            with contextlib.redirect_stdout(io.StringIO()):
                rows = play(recipe, seed, options.images, data_dir, f"{options.output}/{name}-{seed}")
            results.setdefault(name, []).append(rows)
    print(*table(results), sep="\n")
    device = helpers.choose_device()
    print(f"\n{helpers.device_name(device)}; "
          + ", ".join(f"{name} {version}" for name, version in helpers.versions().items()))


if __name__ == "__main__":
    main()
