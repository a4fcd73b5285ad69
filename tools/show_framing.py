"""Draw how a photograph of img_align_celeba is framed, on a drawn face: assets/framing.png.

    python -m tools.show_framing

The pictures on the right are what photos.decode gives for that drawing, in a folder of another name and of CelebA's."""
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import helpers
from plumbing import files, photos
from plumbing.story import ROOT


def drawing():
    """A face as it lies in img_align_celeba: 178x218 pixels, the eyes on row 111, in columns 70 and 108."""
    large = Image.new("RGB", (4 * 178, 4 * 218), "#9db4c0")
    draw = ImageDraw.Draw(large)
    for shape, box, colour in (
            ("rounded_rectangle", (20, 188, 158, 240), "#5c6b73"), ("rectangle", (72, 160, 106, 195), "#d9a37f"),
            ("ellipse", (38, 48, 140, 190), "#4a3222"), ("ellipse", (48, 68, 130, 178), "#e8b796"),
            ("ellipse", (61, 106, 79, 116), "white"), ("ellipse", (99, 106, 117, 116), "white"),
            ("ellipse", (66, 107, 74, 115), "#2b3a42"), ("ellipse", (104, 107, 112, 115), "#2b3a42"),
            ("rectangle", (60, 98, 80, 101), "#4a3222"), ("rectangle", (98, 98, 118, 101), "#4a3222"),
            ("polygon", (89, 112, 82, 134, 96, 134), "#d9a37f"), ("ellipse", (73, 147, 105, 158), "#b5524f")):
        getattr(draw, shape)([4 * number for number in box], fill=colour)
    return large.resize((178, 218), Image.Resampling.LANCZOS)


def figure():
    """The drawing with the square that is used of it, and what is decoded at 64x64."""
    panels = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, name in (("any other folder:\nthe middle square", "faces"),
                            ("img_align_celeba:\nthe face", photos.ALIGNED)):
            path = Path(folder, name, "000001.png")
            path.parent.mkdir()
            drawing().save(path)
            panels[title] = photos.decode(path, 64)
        embedded = photos.load_images(photos.unzip(ROOT / "processed_celeba_small.zip", folder), 64, limit=500)
        panels["the embedded faces'\nmean"] = embedded.float().mean(0).permute(1, 2, 0).byte().numpy()
    whole = drawing()
    ImageDraw.Draw(whole).rectangle(photos.FACE, outline="red", width=2)
    panels = {"178x218": np.asarray(whole)} | panels
    result, axes = helpers.plt.subplots(1, len(panels), figsize=(7, 2.4), layout="constrained")
    for axis, (title, picture) in zip(axes, panels.items()):
        axis.imshow(picture, interpolation="nearest")
        axis.set(xticks=[], yticks=[], anchor="S")
        axis.set_title(title, fontsize="small")
    return result


def main():
    files.save_figure(ROOT / "assets" / "framing.png", figure())


if __name__ == "__main__":
    main()
