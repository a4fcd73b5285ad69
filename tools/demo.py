"""Make a folder with a page that draws and steers the faces of a run in the browser.

    python -m tools.demo RUN FOLDER
    python -m http.server --directory FOLDER     or any other file server
"""
import argparse
from pathlib import Path

import helpers
from plumbing import files
from plumbing.story import ROOT


def make_demo(run, folder):
    """Put demo/index.html and the generator of the folder run into folder. Raises ValueError as load_generator does."""
    helpers.load_generator(run)
    page = (ROOT / "demo" / "index.html").read_bytes().replace(b'data-folder="../assets/"', b'data-folder="./"')
    contents = {name: Path(run, name).read_bytes() for name in ("generator.safetensors", "generator.json")}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, content in (contents | {"index.html": page}).items():
        files.write(Path(folder) / name, content)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a run, or of a kept generator")
    parser.add_argument("folder", help="where to put the page")
    options = parser.parse_args()
    try:
        make_demo(options.run, options.folder)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
