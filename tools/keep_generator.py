"""Keep the generator of a finished run, in half precision, with the run's metrics in generator.json.

    python -m tools.keep_generator RUN [FOLDER]     FOLDER is assets unless given
"""
import argparse
import json
from pathlib import Path

from safetensors.torch import load_file

import helpers
from plumbing import files


def keep_generator(run, folder="assets"):
    """Copy the generator of the folder run into folder. Raises FileNotFoundError if run is not finished and ValueError if
    its files are damaged."""
    run = Path(run)
    if not (run / "metrics.json").exists():
        raise FileNotFoundError(f"{run} does not hold a finished run: it has no metrics.json; finish it with resume "
                                "true.")
    helpers.load_generator(run)  # raises ValueError if it cannot
    try:
        about, metrics = (json.loads((run / name).read_text()) for name in ("generator.json", "metrics.json"))
        parameters = metrics["parameters"]
        for path in ("dataset", "output_dir"):  # of this machine, and of no use on another
            del parameters[path]
        parameters["start_from"] = Path(parameters["start_from"]).name
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{run / 'metrics.json'} is damaged ({type(error).__name__}: {error}); measure the run again with "
                         "resume true.") from error
    weights = load_file(run / "generator.safetensors")
    halves = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    for name, content in helpers.generator_files(halves, about | {"run": metrics}).items():
        files.write(Path(folder) / name, content)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("folder", nargs="?", default="assets", help="where to keep it (default: assets)")
    options = parser.parse_args()
    try:
        keep_generator(options.run, options.folder)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
