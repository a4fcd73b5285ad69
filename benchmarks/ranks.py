"""Several processes of one thread each beside one with as many threads: the whole notebook, on as many images.

    python -m benchmarks.ranks              2 ranks of one thread, one of two, on the embedded faces; killed, it goes on
    python -m benchmarks.ranks --ranks 4 --dataset PATH --output runs/four

batch_size is that of one rank, so the ranks play twice: with batches of 16 between them, the same game as alone but for
batch normalisation, which sees each rank's own, and with 16 each. All see equally many images.
"""
import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from plumbing.story import NOTEBOOK, ROOT

PARAMETERS = {}  # over the notebook's defaults, which are measured
BATCH = 16


def play(count, threads, batch_size, folder, dataset):
    """The metrics of the notebook's run on count ranks in folder; a run that is there is not played again."""
    done = folder / "metrics.json"
    if not done.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        parameters = PARAMETERS | {"batch_size": batch_size, "output_dir": folder, "dataset": dataset, "resume": True}
        given = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
        papermill = [sys.executable, "-m", "papermill", "--no-progress-bar", "--cwd", str(ROOT), *given, str(NOTEBOOK)]
        line = f"{shlex.join(papermill)} {shlex.quote(str(folder))}-$RANK.ipynb"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        ended = subprocess.run([*torchrun, "--no-python", "bash", "-c", line], capture_output=True, text=True,
                               env=os.environ | {"OMP_NUM_THREADS": str(threads)})
        if ended.returncode:
            sys.exit(f"{folder.name} did not come to its end: {ended.stderr}")
        print(folder.name, file=sys.stderr)
    return json.loads(done.read_text())


def table(results):
    """A Markdown table from {(ranks, threads, batch_size): metrics}."""
    lines = ["| ranks, threads each | images a step | images seen | training | images/s | distance |",
             "|---|---|---|---|---|---|"]
    for (count, threads, batch_size), metrics in results.items():
        seen = metrics["steps"] * batch_size  # metrics count the batches of all ranks
        lines.append(f"| {count}, {threads} | {count} x {batch_size} | {seen:,} | {metrics['train_seconds']:.0f} s "
                     f"| {metrics['images_per_second']:.0f} | {metrics['measures']['swd']:.1f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2, help="ranks, and threads of the one alone (default: 2)")
    parser.add_argument("--dataset", default=str(ROOT / "processed_celeba_small.zip"), help="a zip or folder of faces")
    parser.add_argument("--output", default="runs/ranks", help="folder for the runs (default: runs/ranks)")
    parser.add_argument("--epochs", type=int, help="epochs of each run (default: the notebook's)")
    options = parser.parse_args()
    if options.epochs:
        PARAMETERS["n_epochs"] = options.epochs
    kinds = [(1, options.ranks, BATCH), (options.ranks, 1, BATCH // options.ranks), (options.ranks, 1, BATCH)]
    output, dataset = Path(options.output).resolve(), Path(options.dataset).resolve()
    results = {kind: play(*kind, output / "x".join(map(str, kind)), dataset) for kind in kinds}
    first = results[kinds[0]]
    print(table(results))
    print(f"\n{first['device_name'].split(',')[0]}, {first['precision']}, torch {first['versions']['torch']}")


if __name__ == "__main__":
    main()
