"""What is wrong with the outputs that a notebook carries, beyond what nbval compares."""
import base64
import io
import json
import re

import numpy as np
from PIL import Image, ImageChops

from plumbing import judge

EPOCH = re.compile(r"epoch +(\d+)/\d+  loss of D ([\d.]+), of G ([\d.]+)  right on real (\d+)%, fake (\d+)%  "
                   r"distance ([\d.]+), average ([\d.]+)")


def pictures(cell):
    """The PNGs among the outputs of a cell as uint8 (height, width, 3)."""
    found = [output["data"]["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")) for png in found]


def texts(cell):
    """The text and the Markdown among the outputs of a cell."""
    return "".join(output.get("text", "") + output.get("data", {}).get("text/markdown", "") for output in cell.outputs)


def alike(a, b):
    """The correlation of two pictures without their margins, at 160x160 pixels."""
    small = []
    for picture in map(Image.fromarray, (a, b)):
        ink = ImageChops.invert(picture).point(lambda value: 255 * (value > 64)).getbbox()
        small.append(np.asarray(picture.crop(ink).resize((160, 160), Image.Resampling.BOX), np.float64).ravel())
    return np.corrcoef(small)[0, 1]


def faults(cells, folder):
    """Sentences: which stored outputs of cells (a notebook's code cells) show nothing, or are not those of the run
    whose metrics.json and pictures are in folder."""
    metrics, said, found = json.loads((folder / "metrics.json").read_text()), "".join(map(texts, cells)), []
    lines = [tuple(map(float, match)) for match in EPOCH.findall(said)]
    expected = [tuple(float(f"{value:{form}}") for value, form in (
        (number, ".0f"), (e["d_loss"], ".3f"), (e["g_loss"], ".3f"), (100 * e["real_accuracy"], ".0f"),
        (100 * e["fake_accuracy"], ".0f"), (e["swd_of_G"], ".1f"), (e["swd"], ".1f")))
        for number, e in enumerate(metrics["epochs"], 1)]
    if lines != expected:
        found.append("the lines of the epochs are not those of the run")
    for name, row in metrics["comparison"].items():
        if judge.table({name: row}).splitlines()[-1] not in said:
            found.append(f"the measures of {name!r} are not those of the run")
    for name, value in metrics["measures"].items():
        if judge.table({name: {"": value}}).splitlines()[-1] not in said:
            found.append(f"{name} is not that of the run")
    if "DOES NOT HOLD" in said or said.count("holds: ") < 10:
        found.append("a claim does not hold")
    shown = [picture for cell in cells for picture in pictures(cell)]
    for cell in cells:
        for name in re.findall(r'save_figure\(run / "(.+?)"', cell.source):
            kept = np.asarray(Image.open(folder / name).convert("RGB"))
            if not any(alike(picture, kept) > 0.95 for picture in shown):
                found.append(f"{name} is not that of the run")
        if any(judge.smoothness(picture[None]) < 0.5 for picture in pictures(cell)):
            found.append(f"a picture of cell {cell.id} is noise")
    return found
