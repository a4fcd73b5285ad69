"""Rows of archives and images that are broken, hostile or odd."""
import io
import os
import re
import sys
import warnings
import zipfile

import numpy as np
from PIL import ExifTags, Image

from conftest import encoded

PNG = encoded()


def archive(*entries, method=zipfile.ZIP_STORED):
    """The bytes of a zip; each entry is (name, content)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as zipped, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in entries:
            zipped.writestr(name, content)
    return file.getvalue()


def encrypted(content):
    """A zip whose entries say so, in both of their headers."""
    return re.sub(b"(PK\3\4..|PK\1\2....)\0", lambda found: found[1] + b"\1", content, flags=re.DOTALL)


def link(target):
    entry = zipfile.ZipInfo("link.png")
    entry.create_system, entry.external_attr = 3, 0o120777 << 16
    return entry, target


GOOD = archive(*((f"{number}.png", PNG) for number in range(5)))
PACKED = archive(("1.png", PNG), method=zipfile.ZIP_BZIP2)
BAD_ARCHIVES = {  # name: (content, what the sentence says)
    "empty": (b"", "cannot be used as a dataset: "),
    "cut-in-half": (GOOD[:len(GOOD) // 2], "cannot be used as a dataset: "),
    "broken-in-the-middle": (GOOD.replace(PNG, PNG[:100] + b"XXXX" + PNG[104:], 3), "Bad CRC-32"),
    "broken-bzip2": (PACKED[:60] + bytes(200) + PACKED[260:], "cannot be unpacked into in/data (Invalid data stream)"),
    "encrypted": (encrypted(GOOD), "is encrypted"),
    "nothing": (archive(), "it does not hold an image (.bmp, .gif,"),
    "no-image": (archive(("readme.txt", b""), ("a.png/", b""), ("faces.zip", GOOD)), "it does not hold an image"),
    "system-files-only": (archive((".DS_Store", b""), ("__MACOSX/1.png", PNG)), "it does not hold an image"),
    "bomb": (archive(("1.png", bytes(12 * 10**7)), method=zipfile.ZIP_BZIP2), "it would unpack to "),
    "name-too-long": (archive(("0.png", PNG), ("a" * 300 + ".png", PNG)), "cannot be unpacked into in/data ("),
}
ODD_ARCHIVES = {  # name: (entries, number of images); each has something that must not leave the folder, or is not one
    "dots": ([("../x.png", PNG), ("y.png", PNG)], 2),
    "absolute": ([("/tmp/x.png", PNG)], 1),
    "drive": ([("C:\\x.png", PNG)], 1),
    "backslashes": ([("..\\x.png", PNG)], 1),
    "dots-and-not-an-image": ([("../.bashrc", b""), ("y.png", PNG)], 1),
    "link": ([link("/etc/passwd"), ("y.png", PNG)], 1),
    "one-name-twice": ([("a.png", b"old"), ("a.png", PNG)], 1),
}

JUNK = {
    "empty.jpg": b"",
    "text.png": b"<html></html>",
    "truncated.jpg": encoded("JPEG")[:600],
    "not-one-of-the-formats.png": encoded("PPM"),
}
if sys.platform == "linux":  # elsewhere no file can have such a name
    JUNK |= dict.fromkeys(["two\nlines.png", "escape\x1b[31m.png", "quote'.png", os.fsdecode(b"\xff.png")], b"")


def halves(right="white", mode="RGB"):
    """An image whose left half is red and whose right half is not."""
    image = Image.new(mode, (40, 40), "red")
    image.paste(right, (20, 0, 40, 40))
    return image


def held(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


RED, WHITE, GREY = (255, 0, 0), (255, 255, 255), (128, 128, 128)
cut_out = halves((0, 0, 0, 0), "RGBA")
deep = np.full((40, 40), 0x8000, np.uint16)
deep[:, 20:] = 0xffff
ODD = {  # name: (content, colour of the left half, colour of the right half)
    "16-bit.png": (encoded("PNG", Image.fromarray(deep)), GREY, WHITE),
    "16-bit-big-endian.tif": (encoded("TIFF", Image.fromarray(deep.astype(">u2"))), GREY, WHITE),
    "32-bit.tif": (encoded("TIFF", Image.fromarray(deep.astype(np.int32) * 2 - 0x8000)), GREY, WHITE),
    "cut-out.png": (encoded("PNG", cut_out), RED, WHITE),
    "cut-out-with-a-palette.png": (encoded("PNG", cut_out.quantize(8)), RED, WHITE),
    "transparent-colour.png": (encoded("PNG", halves("black"), transparency=(0, 0, 0)), RED, WHITE),
    "upside-down.jpg": (encoded("JPEG", halves(), quality=95, exif=held(3)), WHITE, RED),
    "truncated-exif.jpg": (encoded("JPEG", halves(), quality=95, exif=held(3).tobytes()[:-9]), RED, WHITE),
    "cmyk.jpg": (encoded("JPEG", halves().convert("CMYK"), quality=95), RED, WHITE),
    "animated.gif": (encoded("GIF", halves(), save_all=True, append_images=[halves("blue")]), RED, WHITE),
    "png-called.jpg": (encoded("PNG", halves()), RED, WHITE),
    "one-pixel.png": (encoded("PNG", Image.new("RGB", (1, 1), "red")), RED, RED),
    "one-pixel-wide.jpg": (encoded("JPEG", Image.new("RGB", (1, 20_000), "red"), quality=95), RED, RED),
    "very-high.jpg": (encoded("JPEG", Image.new("RGB", (40, 20_000), "red"), quality=95), RED, RED),
}
