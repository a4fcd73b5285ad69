"""What differs between finished runs and what came of it: one table, and one picture of the same z.

    python -m benchmarks.compare runs/sweep                    NAME.md and NAME.png in that folder, NAME being its own
    python -m benchmarks.compare runs/sweep --keep assets      in another

A run is a folder with a metrics.json, however deep. Runs that differ in their seed alone share a row of the table.
"""
import argparse
import io
import json
import sys
from pathlib import Path
from statistics import mean

from PIL import Image

import helpers
from plumbing import files

NO_MATTER = {"seed", "output_dir", "print_every", "fid", "resume"}  # parameters that do not make two runs differ
FOR_ALL = ("device", "precision", "torch", "images", "n_epochs")  # named below the table if they are the same in all


def spread(values, digits):
    """The mean of values and, if there are several, the lowest and the highest in brackets."""
    ends = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{ends}"


MEASURES = {  # heading: the cell of a row, from the metrics of its runs
    "distance": lambda runs: spread([m["measures"]["swd"] for m in runs], 1),
    "close pairs, times those of the data": lambda runs: spread(
        [m["measures"]["close_pairs"] / m["measures"]["close_pairs_expected"] for m in runs], 1),
    "contrast": lambda runs: spread([m["comparison"]["this run"]["contrast"] for m in runs], 2),
    "images/s": lambda runs: f"{mean(m['images_per_second'] for m in runs):.0f}"}


def table(first, rows, measures=tuple(MEASURES)):
    """A Markdown table of rows, {cells under the headings first: [metrics of each run]}, with some of MEASURES."""
    headings = [*first, *measures]
    lines = [[*cells, *(MEASURES[name](runs) for name in measures)] for cells, runs in rows.items()]
    head, *lines = [f"| {' | '.join(line)} |" for line in (headings, *lines)]
    return "\n".join([head, "|" + "---|" * len(headings), *lines])


def keep(folder, name, text, figure):
    """Write text to name.md and figure, if there is one, in 256 colours to name.png in folder, made if need be."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    files.write(Path(folder) / f"{name}.md", text.encode())
    if figure:
        picture = io.BytesIO()
        figure.savefig(picture, format="png", bbox_inches="tight")
        with files.whole_file(Path(folder) / f"{name}.png") as file:  # in all its colours it is twice as large
            Image.open(picture).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, "png", optimize=True)


def known_of(metrics):
    """What may differ between two runs, {name: text}: parameters, and what "auto" came to on which machine."""
    known = metrics["parameters"] | {"device": metrics["device_name"], "precision": metrics["precision"],
                                     "torch": metrics["versions"]["torch"], "images": metrics["images"]}
    return {name: str(value).replace("|", "\\|") or '""' for name, value in known.items()}


def read_runs(folder):
    """{folder of a run: its metrics} of every metrics.json below folder, in order of name.

    Those that are broken or another program's are left out, named and counted on standard error. Raises ValueError
    if none is left."""
    found, faults = {}, []
    for path in sorted(Path(folder).rglob("metrics.json")):
        try:
            metrics = json.loads(path.read_text())
            table(["seed"], {(known_of(metrics)["seed"],): [metrics]})
            found[path.parent] = metrics
        except Exception as error:  # what another program wrote can raise anything
            faults.append(f"{path} ({type(error).__name__}: {error})")
    if faults:
        print(f"Left out {len(faults)} of {len(faults) + len(found)} files that are not the metrics of a run of this "
              f"notebook: {', '.join(faults)}.", file=sys.stderr)
    if not found:
        raise ValueError(f"{str(folder)!r} does not hold a finished run, which is a folder with a metrics.json.")
    return found


def compare_runs(folder):
    """(Markdown, figure) of the runs below folder: a row of the table is one set of parameters and its seeds, a row of
    the figure a run; all draw the same z if their z_size is the same.

    Runs that cannot be read, and generators that cannot be drawn from, are left out and named on standard error; if no
    generator is left, the figure is None. Raises ValueError if there is no run."""
    found = read_runs(folder)
    known = {run: known_of(metrics) for run, metrics in found.items()}
    names = dict.fromkeys(name for one in known.values() for name in one if name not in NO_MATTER)
    differ = [name for name in names if len({one.get(name) for one in known.values()}) > 1]
    groups, faces = {}, {}
    for run, one in known.items():
        groups.setdefault(tuple(one.get(name, "not known") for name in differ), []).append(run)
        try:
            label = run.relative_to(folder).as_posix()
            faces[run.resolve().name if label == "." else label] = helpers.load_generator(run)(12)
        except ValueError as error:
            print(error, file=sys.stderr)
    rows = {(*cells, ", ".join(known[run]["seed"] for run in runs)): [found[run] for run in runs]
            for cells, runs in groups.items()}
    alike = [f"{name} {one[name]}" for name in FOR_ALL if name in one and name not in differ]
    text = f"{table([*differ, 'seed'], rows)}\n\nRuns: {len(found)}; the same in all: {', '.join(alike)}.\n"
    return text, helpers.show_rows(faces, columns=12, title="The same z, drawn by each run") if faces else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a folder with runs in it")
    parser.add_argument("--keep", metavar="FOLDER", help="where table and picture go (default: with the runs)")
    options = parser.parse_args()
    try:
        text, figure = compare_runs(options.folder)
        keep(options.keep or options.folder, Path(options.folder).resolve().name, text, figure)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(text)


if __name__ == "__main__":
    main()
