"""Broken, hostile and odd input: each is used correctly or refused in one sentence that names it."""
import bz2
import io
import json
import math
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import helpers
from notebook import definitions

NOTEBOOK = definitions()
DEFAULTS = {name: getattr(NOTEBOOK, name) for name in helpers.RULES}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(call, *names):
    """call() must raise ValueError or OSError with one sentence that holds names."""
    with pytest.raises((ValueError, OSError)) as caught:
        call()
    sentence = str(caught.value)
    assert type(caught.value) in (ValueError, OSError, FileNotFoundError)
    assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 1000, sentence
    assert all(name in sentence for name in names), sentence
    return sentence


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def encoded(format="PNG", image=None, **options):
    file = io.BytesIO()
    (image or Image.fromarray(pixels(40, 40, 3))).save(file, format, **options)
    return file.getvalue()


PNG = encoded()

# --- Parameters -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("value", [
    "", " ", "abc", "0x10", "64.5", "nan", "inf", "-1", "0", "6 4", "1e400", "true", "64\0", None, True, [], [64], {},
    (), 64.5, math.nan, math.inf, 10**400, -10**400, 10**5000, b"64", 64j, object(), np.array([64, 64])],
    ids=lambda value: f"{type(value).__name__}-{helpers.shown(value)[:12]}")
def test_batch_size(value):
    refused(lambda: helpers.check_parameters({**DEFAULTS, "batch_size": value}),
            "batch_size must be a whole number, 4 or more; it is ")


@pytest.mark.parametrize("name, value", [
    ("dataset", ""), ("dataset", "\0"), ("dataset", "\ud800"), ("output_dir", " "), ("output_dir", 5),
    ("image_size", 48), ("image_size", "32x32"), ("d_lr", 0), ("d_lr", "-1e-3"), ("g_lr", True), ("beta1", 1),
    ("beta2", "1.0"), ("ema_decay", -0.1), ("augment", "flop"), ("augment", "flip,shift"), ("augment", False),
    ("start_from", " "), ("start_from", 5), ("instance_noise", -0.1),
    ("seed", -1), ("seed", 2**32), ("device", "gpu"), ("device", "cuda:x"), ("device", "cpu\n"),
    ("device", None), ("precision", "fp16"), ("resume", "yes"), ("resume", 1), ("resume", "")], ids=repr)
def test_other_parameters(name, value):
    refused(lambda: helpers.check_parameters({**DEFAULTS, name: value}), f"{name} must be ", "; it is ")


def test_start_from(tmp_path):
    here = {**DEFAULTS, "start_from": str(tmp_path), "output_dir": str(tmp_path.parent / tmp_path.name)}
    refused(lambda: helpers.check_parameters(here), "there is no checkpoint.pt in it")
    refused(lambda: helpers.check_parameters({**here, "start_from": "x" * 5000}), "there is no checkpoint.pt in it")
    (tmp_path / "checkpoint.pt").touch()
    refused(lambda: helpers.check_parameters(here), "start_from and output_dir are the same folder")
    assert helpers.check_parameters({**here, "output_dir": "runs/other"})["start_from"] == str(tmp_path)
    assert helpers.check_parameters({**DEFAULTS, "start_from": "gone", "resume": True})["start_from"] == "gone"
    parts = {"D": torch.nn.Linear(2, 2)}
    refused(lambda: helpers.load_networks(tmp_path, parts, DEFAULTS), "checkpoint.pt is no checkpoint of this notebook")
    message = refused(lambda: helpers.load_networks("gone", parts, DEFAULTS), "there is no gone/checkpoint.pt to go on from")
    assert "resume is true" not in message and "start_from" in message


def test_a_value_that_cannot_be_shown():
    class Hostile:
        def __repr__(self):
            raise RuntimeError
    refused(lambda: helpers.check_parameters({**DEFAULTS, "seed": Hostile()}), "it is a value of type Hostile.")


# --- Archives ---------------------------------------------------------------------------------------------------------

def archive(*entries, method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as zipped, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in entries:
            zipped.writestr(name, content)
    return file.getvalue()


def link():
    entry = zipfile.ZipInfo("link.png")
    entry.create_system, entry.external_attr = 3, 0o120777 << 16
    return archive(("1.png", PNG), (entry, "/etc/passwd"))


def flagged(content, bit):
    """A zip whose entries all have a flag set, in both of their headers."""
    content = bytearray(content)
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = content.find(mark)
        while start >= 0:
            content[start + offset] |= bit
            start = content.find(mark, start + 4)
    return bytes(content)


def with_method(content, method):
    """A zip of one entry, said to be compressed by another method, in both of its headers."""
    table = content.index(b"PK\1\2")
    number = struct.pack("<H", method)
    return content[:8] + number + content[10:table + 10] + number + content[table + 12:]


def overlapping():
    """One entry's data listed 300 times: 300 MB out of 400 kB."""
    content = archive(("000.png", bytes(10**6)), method=zipfile.ZIP_DEFLATED)
    table, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    tables = b"".join(content[table:end].replace(b"000.png", b"%03d.png" % n) for n in range(300))
    return content[:table] + tables + struct.pack("<4s4HLLH", b"PK\5\6", 0, 0, 300, 300, len(tables), table, 0)


good = [(f"{n}.png", PNG) for n in range(5)]
BAD_ARCHIVES = {
    "empty-file": b"",
    "text": b"no zip at all\n" * 100,
    "tar": b"faces.jpg".ljust(512, b"\0") * 4,
    "zeros": bytes(10_000),
    "html-error-page": b"<!DOCTYPE html><html><body>404</body></html>",
    "cut-in-half": archive(*good)[:len(archive(*good)) // 2],
    "last-byte-missing": archive(*good)[:-1],
    "first-bytes-missing": archive(*good)[50:],
    "only-the-table": archive(*good)[archive(*good).index(b"PK\1\2"):],
    "no-entries": archive(),
    "no-image": archive(("readme.txt", b""), ("a/", b"")),
    "nested-zip-only": archive(("faces.zip", archive(*good))),
    "only-system-files": archive((".DS_Store", b""), ("__MACOSX/._1.png", PNG), (".hidden/1.png", PNG)),
    "crc-error-in-the-middle": archive(*good).replace(PNG, PNG[:100] + b"XXXX" + PNG[104:], 3),
    "broken-deflate": (lambda z: z[:200] + b"\xff" * 50 + z[250:])(archive(*good, method=zipfile.ZIP_DEFLATED)),
    "broken-lzma": (lambda z: z[:60] + b"\xff" * 200 + z[260:])(archive(*good, method=zipfile.ZIP_LZMA)),
    "broken-bzip2": (lambda z: z[:60] + b"\xff" * 200 + z[260:])(archive(*good, method=zipfile.ZIP_BZIP2)),
    "unknown-compression": with_method(archive(good[0]), 77),
    "encrypted": flagged(archive(*good), 1),
    "strong-encryption": flagged(archive(*good), 0x41),
    "patched-data": flagged(archive(*good), 0x20),
    "slip-dots": archive(*good, ("../x.jpg", PNG)),
    "slip-dots-inside": archive(*good, ("a/../../x.jpg", PNG)),
    "slip-absolute": archive(*good, ("/tmp/x.jpg", PNG)),
    "slip-drive": archive(*good, ("C:\\x.jpg", PNG)),
    "slip-drive-relative": archive(*good, ("c:x.jpg", PNG)),
    "slip-backslashes": archive(*good, ("..\\x.jpg", PNG)),
    "slip-share": archive(*good, ("\\\\server\\share\\x.jpg", PNG)),
    "slip-no-image": archive(*good, ("../.bashrc", b"")),
    "slip-newline": archive(*good, ("../a\nb.jpg", PNG)),
    "link": link(),
    "bomb": archive(("1.png", bytes(12 * 10**7)), method=zipfile.ZIP_BZIP2),
    "overlapping-bomb": overlapping(),
    "name-too-long": archive(*good, ("a" * 300 + ".png", PNG)),
    "path-too-long": archive(*good, ("a/" * 3000 + "1.png", PNG)),
    "file-and-folder-in-one": archive(("a.png", PNG), ("a.png/b.png", PNG)),
    "invalid-utf8": archive(("caf\u00e9.png", PNG)).replace("\u00e9".encode(), b"\xff\xfe"),
}
GOOD_ARCHIVES = {  # (content, number of images)
    "mixed-with-system-files": (archive(*good, (".DS_Store", b"x"), ("__MACOSX/._0.png", b"x"), ("Thumbs.db", b"")), 5),
    "spaces-and-accents": (archive(("m\u00fc ller/\u00e9.png", PNG), ("\u5bb6.png", PNG)), 2),
    "not-utf8-names": (archive(("xxxx.png", PNG)).replace(b"xxxx", b"\xff\xfe\x80\x81"), 1),
    "backslashes": (archive(("faces\\a.png", PNG), ("faces\\b.png", PNG)), 2),
    "same-name-twice": (archive(("a.png", b"old"), ("a.png", PNG)), 1),
    "names-differ-in-case": (archive(("a.png", PNG), ("A.png", PNG), ("a.PNG", PNG)), 3),
    "text-before-it": (b"#!/bin/sh\n" + archive(*good), 5),
    "comment-after-it": (archive(*good)[:-2] + struct.pack("<H", 5) + b"hello", 5),
    "junk-among-images": (archive(*good, ("x.jpg", b"text")), 5),
    "deep": (archive(("a/" * 50 + "1.png", PNG)), 1),
    "dots-in-names": (archive(("a..b/..c.png", PNG), ("a..b/d..e.png", PNG)), 1),
    "colon": (archive(("12:30 h.png", PNG)), 1),
    "lzma": (archive(*good, method=zipfile.ZIP_LZMA), 5),
}


@pytest.mark.parametrize("content", BAD_ARCHIVES.values(), ids=BAD_ARCHIVES.keys())
def test_bad_archive(content, tmp_path):
    Path("in").mkdir()
    Path("in/faces.zip").write_bytes(content)
    for _ in range(2):  # the second time there must be nothing that looks whole
        refused(lambda: helpers.unzip("in/faces.zip", "in/data"), "in/faces.zip", "cannot be ")
    assert not [p for p in tmp_path.rglob("*") if p.name not in ("in", "data", "faces.zip") and p.suffix != ".lock"]


@pytest.mark.parametrize("content, count", GOOD_ARCHIVES.values(), ids=GOOD_ARCHIVES.keys())
def test_odd_archive(content, count, tmp_path):
    Path("in").mkdir()
    Path("in/faces.zip").write_bytes(content)
    folder = helpers.unzip("in/faces.zip", "in/data")
    assert len(helpers.load_images(folder, 32)) == count
    assert not [p for p in tmp_path.rglob("*.png") if folder not in p.relative_to(tmp_path).parents]


def test_not_a_regular_file():
    refused(lambda: helpers.unzip("absent.zip"), "absent.zip")
    Path("folder.zip").mkdir()
    refused(lambda: helpers.unzip("folder.zip"), "folder.zip")
    if os.path.exists("/dev/zero"):
        refused(lambda: helpers.prepare_data("/dev/zero"), "/dev/zero")


def test_a_zip_of_a_very_long_name():
    Path("n" * 240 + ".zip").write_bytes(archive(*good))
    assert len(helpers.load_images(helpers.unzip("n" * 240 + ".zip"), 32)) == 5


# --- Images -----------------------------------------------------------------------------------------------------------

def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width, height, *more):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def text_chunk_bomb():
    return chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7)))


JUNK = {
    "empty.jpg": b"",
    "text.jpg": b"this is no picture",
    "html.png": b"<html></html>",
    "zeros.png": bytes(1000),
    "truncated.png": PNG[:len(PNG) // 2],
    "truncated.jpg": encoded("JPEG")[:600],
    "header-only.jpg": encoded("JPEG")[:4],
    "truncated.gif": encoded("GIF")[:50],
    "truncated.bmp": encoded("BMP")[:500],
    "truncated.tiff": encoded("TIFF")[:500],
    "truncated.webp": encoded("WEBP")[:100],
    "broken-crc.png": PNG[:60] + b"XX" + PNG[62:],
    "hundred-megapixels.png": png_header(10_000, 10_000),
    "bomb.png": png_header(100_000, 100_000),
    "no-width.png": png_header(0, 10),
    "text-bomb.png": png_header(10, 10, text_chunk_bomb()),
    "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
    "photoshop.jpg": b"8BPS" + bytes(100),
    "zip.png": archive(*good),
    "bzip2.png": bz2.compress(PNG),
    "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
}


@pytest.mark.parametrize("name", JUNK)
def test_junk(name, capsys, recwarn):
    Path("faces").mkdir()
    Path("faces", name).write_bytes(JUNK[name])
    refused(lambda: helpers.load_images("faces", 32), "'faces' holds no image")
    assert capsys.readouterr().out == f"Left out 1 of 1 files that are no image: {name}\n"
    Path("faces/good.png").write_bytes(PNG)
    assert len(helpers.load_images("faces", 32)) == 1
    assert not recwarn.list


def frames(count):
    return [Image.new("RGB", (40, 40), color) for color in ("red", "lime", "blue")[:count]]


def half_transparent(mode):
    image = Image.new("RGBA", (40, 40), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (20, 0, 40, 40))
    return image.convert(mode) if mode != "P" else image.quantize(8)


def wide(width, height):
    return Image.fromarray(np.full((height, width, 3), (255, 0, 0), np.uint8))


def turned(orientation):
    exif = Image.Exif()
    exif[helpers.ORIENTATION] = orientation
    return exif


def left_red(mode="RGB", right="white"):
    """An image whose left half is red and whose right half is not."""
    image = Image.new("RGB", (40, 40), "red")
    image.paste(right, (20, 0, 40, 40))
    return image.convert(mode)


RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)
grey = np.full((40, 40), 0x8000, np.uint16)
grey[:, 20:] = 0xffff
GREY = (128, 128, 128)
palette = half_transparent("P")
ODD = {  # name: (content, colour of the left half, colour of the right half)
    "grey.png": (encoded("PNG", Image.fromarray((grey >> 8).astype(np.uint8))), GREY, WHITE),
    "grey.jpg": (encoded("JPEG", Image.fromarray((grey >> 8).astype(np.uint8))), GREY, WHITE),
    "16-bit.png": (encoded("PNG", Image.fromarray(grey)), GREY, WHITE),
    "16-bit.tiff": (encoded("TIFF", Image.fromarray(grey)), GREY, WHITE),
    "16-bit-big-endian.tif": (encoded("TIFF", Image.fromarray(grey.astype(">u2"))), GREY, WHITE),
    "one-bit.png": (encoded("PNG", Image.fromarray((grey > 0x8000).astype(np.uint8) * 255).convert("1")), BLACK, WHITE),
    "palette.png": (encoded("PNG", left_red().quantize(4)), RED, WHITE),
    "palette-with-transparency.png": (encoded("PNG", palette), RED, WHITE),
    "palette-with-transparent-bytes.png": (
        encoded("PNG", left_red(right="black").quantize(2), transparency=bytes([0 if left_red(right="black").quantize(
            2).getpixel((39, 0)) == n else 255 for n in range(2)])), RED, WHITE),
    "transparent-colour.png": (encoded("PNG", left_red(right="black"), transparency=(0, 0, 0)), RED, WHITE),
    "rgba.png": (encoded("PNG", half_transparent("RGBA")), RED, WHITE),
    "rgba.webp": (encoded("WEBP", half_transparent("RGBA"), lossless=True), RED, WHITE),
    "grey-with-alpha.png": (encoded("PNG", half_transparent("LA")), (76, 76, 76), WHITE),
    "cmyk.jpg": (encoded("JPEG", left_red("CMYK"), quality=95), (254, 0, 0), WHITE),
    "animated.gif": (encoded("GIF", frames(1)[0], save_all=True, append_images=frames(3)[1:]), RED, RED),
    "animated.png": (encoded("PNG", frames(1)[0], save_all=True, append_images=frames(3)[1:]), RED, RED),
    "png-called.jpg": (encoded("PNG", left_red()), RED, WHITE),
    "jpeg-called.png": (encoded("JPEG", left_red(), quality=95), (254, 0, 0), WHITE),
    "progressive.jpg": (encoded("JPEG", left_red(), quality=95, progressive=True), (254, 0, 0), WHITE),
    "upside-down.jpg": (encoded("JPEG", left_red(), quality=95, exif=turned(3)), WHITE, (254, 0, 0)),
    "mirrored.png": (encoded("PNG", left_red(), exif=turned(2)), WHITE, RED),
    "quarter-turn.jpg": (encoded("JPEG", left_red().transpose(Image.Transpose.ROTATE_90), quality=95, exif=turned(6)),
                         (254, 0, 0), WHITE),
    "orientation-unknown.jpg": (encoded("JPEG", left_red(), quality=95, exif=turned(99)), (254, 0, 0), WHITE),
    "exif-of-rubbish.jpg": (encoded("JPEG", left_red(), quality=95, exif=b"Exif\0\0rubbish"), (254, 0, 0), WHITE),
    "one-pixel.png": (encoded("PNG", wide(1, 1)), RED, RED),
    "20000-pixels-wide.png": (encoded("PNG", wide(20_000, 40)), RED, RED),
    "20000-pixels-high.jpg": (encoded("JPEG", wide(40, 20_000), quality=95), (254, 0, 0), (254, 0, 0)),
    "one-pixel-high.bmp": (encoded("BMP", wide(500, 1)), RED, RED),
    "bytes-after-the-end.jpg": (encoded("JPEG", left_red(), quality=95) + b"more", (254, 0, 0), WHITE),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_image(name, capsys, recwarn):
    content, left, right = ODD[name]
    Path("faces").mkdir()
    Path("faces", name).write_bytes(content)
    (image,) = helpers.load_images("faces", 32)
    assert np.abs(image[:, 16, 4].numpy().astype(int) - left).max() <= 3
    assert np.abs(image[:, 16, 28].numpy().astype(int) - right).max() <= 3
    assert capsys.readouterr().out == "" and not recwarn.list


def test_folders_without_images():
    refused(lambda: helpers.load_images("absent", 32), "'absent' does not exist")
    Path("faces/__MACOSX").mkdir(parents=True)
    Path("faces/.hidden").mkdir()
    for name in ("notes.txt", "__MACOSX/1.png", ".hidden/1.png", ".1.png"):
        Path("faces", name).write_bytes(PNG)
    refused(lambda: helpers.load_images("faces", 32), "'faces' holds no image")
    Path("file").touch()
    refused(lambda: helpers.load_images("file", 32), "'file' does not exist")


@pytest.mark.parametrize("name", ["two\nlines.png", "escape\x1b[31m.png", "quote'.png", os.fsdecode(b"\xff\xfe.png")],
                         ids=ascii)
def test_names_of_junk_are_printed_on_one_line(name, capsys):
    Path("faces").mkdir()
    try:
        for suffix, content in (("", b"junk"), (".png", PNG)):
            Path("faces", name + suffix).write_bytes(content)
    except OSError:
        pytest.skip("a file system without such names")
    assert len(helpers.load_images("faces", 32)) == 1
    said = capsys.readouterr().out
    assert said.startswith("Left out 1 of 2 files") and said.count("\n") == 1 and said.strip().isprintable()


# --- Samples ----------------------------------------------------------------------------------------------------------

class Calls:
    """Pickles into a call of function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def objects(*content):
    array = np.empty(len(content), object)
    array[:] = content
    return array


SAMPLES = {
    "empty": b"",
    "text": b"hello",
    "truncated": pickle.dumps([pixels(4, 8, 8, 3)])[:100],
    "os-system": pickle.dumps(Calls(os.system, "touch hacked")),
    "eval": pickle.dumps([Calls(eval, "open('hacked', 'w')")]),
    "exec-nested": pickle.dumps([[(Calls(exec, "open('hacked', 'w')"),)]]),
    "in-an-object-array": pickle.dumps([objects(Calls(os.system, "touch hacked"))]),
    "old-protocol": b"cos\nsystem\n(S'touch hacked'\ntR.",
    "dotted-name": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__new__\x93.",
    "import-of-a-module": b"cantigravity\nfly\n.",
    "np-load": pickle.dumps(Calls(np.load, "x")),
    "ctypes": b"cctypes\nCDLL\n(S'x'\ntR.",
    "getattr": pickle.dumps(Calls(getattr, np.ndarray, "tofile")),
    "object-array": pickle.dumps([objects(1, 2)]),
    "floats": pickle.dumps([np.zeros((4, 8, 8, 3))]),
    "array-not-in-a-list": pickle.dumps(pixels(4, 8, 8, 3)),
    "list-of-lists": pickle.dumps([[1, 2]]),
    "dict": pickle.dumps({"a": 1}),
    "torch-tensor": pickle.dumps([torch.zeros(2)]),
    "numpy-scalar": pickle.dumps([np.uint8(1)]),
    "persistent-id": b"Pabc\n.",
    "array-of-a-petabyte": b"cnumpy\nndarray\n((I1000000000000000\ntS'f8'\ntR.",
}


@pytest.mark.parametrize("content", SAMPLES.values(), ids=SAMPLES.keys())
def test_samples(content):
    Path("samples.pkl").write_bytes(content)
    refused(lambda: helpers.load_samples("samples.pkl"), "samples.pkl is no file of samples")
    assert os.listdir() == ["samples.pkl"]


def test_no_samples():
    refused(lambda: helpers.load_samples("absent.pkl"), "absent.pkl cannot be read")
    refused(lambda: helpers.load_samples("."), ". cannot be read")


# --- Checkpoints and generators ---------------------------------------------------------------------------------------

def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


CHECKPOINTS = {
    "empty": b"",
    "text": b"hello",
    "truncated": saved({"parts": {}, "parameters": {"seed": 0}})[:-200],
    "hostile": saved({"parts": {}, "parameters": {"seed": 0}, "x": Calls(os.system, "touch hacked")}),
    "hostile-pickle": pickle.dumps(Calls(os.system, "touch hacked"), protocol=2),
    "tensor": saved(torch.zeros(3)),
    "list": saved([1, 2]),
    "foreign": saved({"state_dict": {}, "epoch": 3}),
    "zip-of-images": archive(*good),
    "other-parameters": saved({"parts": {}, "parameters": {"seed": 1}}),
    "no-parameters": saved({"parts": {}, "parameters": {}}),
    "parameters-of-another-type": saved({"parts": {}, "parameters": 5}),
}


@pytest.mark.parametrize("content", CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_checkpoints(content):
    Path("checkpoint.pt").write_bytes(content)
    mine = {"D": torch.nn.Linear(1, 1)}
    refused(lambda: helpers.load_checkpoint("checkpoint.pt", mine, {"seed": 0}), "checkpoint.pt")
    assert os.listdir() == ["checkpoint.pt"]


def test_no_checkpoint():
    refused(lambda: helpers.load_checkpoint("absent.pt", {}, {}), "there is no absent.pt to go on from",
            "start without it (resume false, start_from \"\")")


@pytest.mark.parametrize("shapes", [{}, {"D": 1}, {"D": 1, "G": 2}], ids=["no-parts", "part-missing", "other-shape"])
def test_checkpoints_with_wrong_parts(shapes):
    content = {name: torch.nn.Linear(n, n).state_dict() for name, n in shapes.items()}
    Path("checkpoint.pt").write_bytes(saved({"parts": content, "parameters": {"seed": 0}}))
    mine = {"D": torch.nn.Linear(1, 1), "G": torch.nn.Linear(1, 1)}
    before = mine["D"].weight.item()
    refused(lambda: helpers.load_checkpoint("checkpoint.pt", mine, {"seed": 0}), "checkpoint.pt")
    assert mine["D"].weight.item() == before


def test_broken_generators():
    refused(lambda: helpers.load_generator("absent"), "absent holds no generator of this notebook")
    helpers.save_generator(".", NOTEBOOK.Generator(20, 4, 64).eval(), 20, 4, 64)
    about, weights = json.loads(Path("generator.json").read_text()), Path("generator.safetensors").read_bytes()
    for change in ({"z_size": 21}, {"z_size": None}, {"image_size": 128}, {"image_size": 0}, {"image_size": "big"}):
        Path("generator.json").write_text(json.dumps(about | change))
        refused(lambda: helpers.load_generator("."), ". holds no generator of this notebook")
    for text in ("", "[]", "{}", "{", "\xff"):
        Path("generator.json").write_bytes(text.encode("latin-1"))
        refused(lambda: helpers.load_generator("."), ". holds no generator of this notebook")
    Path("generator.json").write_text(json.dumps(about))
    for content in (b"", weights[:100], weights[:-1], bytes(1000), b"\xff" * 1000, PNG):
        Path("generator.safetensors").write_bytes(content)
        refused(lambda: helpers.load_generator("."), ". holds no generator of this notebook")


def test_generator_of_another_size():
    helpers.save_generator(".", NOTEBOOK.Generator(20, 4, 64).eval(), 20, 4, 32)
    refused(lambda: helpers.load_generator("."), ". holds no generator of this notebook")
