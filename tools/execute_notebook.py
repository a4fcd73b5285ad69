"""Execute face_generation.ipynb in place with its default parameters, and keep only what GitHub can render.

    python -m tools.execute_notebook

Run it after every change of the notebook: the repository holds the notebook as executed from top to bottom. The
pictures and the metrics of the run go to assets. Progress bars are dropped, since without a running kernel they show
nothing; pictures are reduced to 256 colours."""
import base64
import io
import re
import shutil

import nbformat
import papermill
from PIL import Image

from plumbing.story import NOTEBOOK, ROOT

WIDGET = "application/vnd.jupyter.widget-view+json"
LANGUAGE = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python", "nbconvert_exporter": "python",
            "pygments_lexer": "ipython3"}  # without a version, which would change from one maker to the next


def compressed(png):
    """The same picture in 256 colours, an animation as it is: base64 text in, base64 text out."""
    image, smaller = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    if image.n_frames > 1:
        return png
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(smaller, "png", optimize=True)
    return base64.b64encode(smaller.getvalue()).decode()


def describe(cell, heading):
    """Give each picture of a code cell a text for who cannot see it: its title without what is filled in, or heading."""
    titles = (re.sub(r" *\{.*?\}", "", title) for title in re.findall('title=f?"([^"]*)"', cell.source))
    for output in cell.outputs:
        if "image/png" in output.get("data", {}):
            output.metadata.setdefault("image/png", {}).setdefault("alt", next(titles, heading))


def main():
    (ROOT / "runs").mkdir(exist_ok=True)
    done = papermill.execute_notebook(NOTEBOOK, ROOT / "runs" / "latest.ipynb", cwd=ROOT, progress_bar=False)
    done.metadata = {"kernelspec": done.metadata.kernelspec, "language_info": LANGUAGE}
    heading = ""
    for cell in done.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "markdown":
            heading = (re.findall("^#+ (.*)", cell.source, re.MULTILINE) or [heading])[-1]
        else:
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
            describe(cell, heading)
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = compressed(output.data["image/png"])
    nbformat.write(done, NOTEBOOK)
    for name in ("processed_face_data.png", "training_loss.png", "generated_faces.png", "metrics.json"):
        shutil.copyfile(ROOT / "runs" / "latest" / name, ROOT / "assets" / name)


if __name__ == "__main__":
    main()
