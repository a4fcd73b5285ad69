"""plumbing/photos.py, with real processes, servers and files if the promise is about them."""
import multiprocessing
import os
import signal
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import filelock
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import at_home, child, encoded, pixels, posix, refused
from odd_files import BAD_ARCHIVES, GOOD, JUNK, ODD, ODD_ARCHIVES, PNG, archive
from plumbing import photos


def folder_of_images(path, count):
    """count images of noise, 0000.png and so on, each of another seed."""
    Path(path).mkdir(parents=True)
    for number in range(count):
        Image.fromarray(pixels(64, 64, 3, seed=number)).save(Path(path, f"{number:04}.png"))
    return Path(path)


def put(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)
    return path


def in_data():
    """The unpacked folder, if there is one, and the rest of one that was not unpacked wholly."""
    return list(Path("data").glob("faces-*")), list(Path("data").glob(".*.partial"))


# --- Folders and zips -------------------------------------------------------------------------------------------------

def test_a_dataset_is_a_folder_or_a_zip(monkeypatch):
    images = folder_of_images("images", 1)
    assert photos.prepare_data("images") == photos.prepare_data(images) == images
    at_home(monkeypatch, Path.cwd())
    assert photos.prepare_data("~/images") == Path.cwd() / images
    assert photos.prepare_data(put("\U0001f600" * 62 + ".zip", GOOD), "new").parent == Path("new")  # the longest
    for path in ("absent", "~nobody-of-that-name/x", "a" * 5000, "nul\0"):
        with pytest.raises(FileNotFoundError, match=r"does not exist \(looked in .*\); give a zip file, a folder of "):
            photos.prepare_data(path)
    refused(lambda: photos.prepare_data(os.devnull), f"{os.devnull} is neither a zip file nor a folder of images")


# --- Archives ---------------------------------------------------------------------------------------------------------

def test_unzip_takes_images_only_and_each_zip_once():
    path = put("faces.zip", archive(("a/1.png", PNG), ("a/b/2.JPG", PNG), ("a/.DS_Store", b""), ("read.me", b""),
                                    ("__MACOSX/a/._1.png", b""), ("a/", b"")))
    folder = photos.unzip(path)
    assert folder.parent == Path("data") and folder.name.startswith("faces-")
    assert sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.*")) == ["a/1.png", "a/b/2.JPG"]
    with mock.patch.object(zipfile.ZipFile, "extractall", None):
        assert photos.unzip(path) == folder
    assert photos.unzip(put(path, archive(("a/1.png", PNG), ("a/b/2.JPG", PNG[::-1])))) != folder


@pytest.mark.parametrize("content, sentence", BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_bad_archive(content, sentence, tmp_path):
    put("in/faces.zip", content)
    for _ in range(2):  # the second time there must be nothing that looks whole
        refused(lambda: photos.unzip("in/faces.zip", "in/data"), "in/faces.zip cannot be ", sentence)
    assert {path.name for path in tmp_path.rglob("*") if path.suffix != ".lock"} <= {"in", "data", "faces.zip"}


@pytest.mark.parametrize("entries, count", ODD_ARCHIVES.values(), ids=ODD_ARCHIVES)
def test_odd_archive_stays_in_its_folder(entries, count, tmp_path):
    folder = photos.unzip(put("in/faces.zip", archive(*entries)), "in/data")
    assert len(photos.load_images(folder, 32)) == count
    outside = {path.name for path in tmp_path.rglob("*") if folder.absolute() not in (path, *path.parents)}
    assert outside - {f".{folder.name}.partial.lock"} == {"in", "data", "faces.zip"}  # Windows removes locks
    assert not any(path.is_symlink() for path in folder.rglob("*"))


def unpacking(before):
    """Has before(name) called before each entry of a zip is written."""
    extract = zipfile.ZipFile._extract_member
    return mock.patch.object(zipfile.ZipFile, "_extract_member", lambda *a: (before(a[1].filename), extract(*a))[1])


@posix
def test_kill_while_unpacking_and_then_again():
    path = put("faces.zip", GOOD)
    with unpacking(lambda name: name == "3.png" and os.kill(os.getpid(), signal.SIGKILL)):
        child(photos.unzip, path).join()
    folders, (partial,) = in_data()
    assert not folders
    (partial / "rest.png").touch()
    folder = photos.unzip(path)
    assert in_data() == ([folder], []) and len(list(folder.iterdir())) == 5


@posix
def test_two_processes_unpack_at_once(monkeypatch):
    path, lock, both = put("faces.zip", GOOD), filelock.FileLock, multiprocessing.get_context("fork").Barrier(2)
    monkeypatch.setattr(filelock, "FileLock", lambda name: (both.wait(60), lock(name))[1])
    with unpacking(lambda name: time.sleep(0.01)):
        process = child(photos.unzip, path)
        folder = photos.unzip(path)
    process.join(60)
    assert process.exitcode == 0 and in_data() == ([folder], []) and len(list(folder.iterdir())) == 5


def test_full_disk_while_unpacking():
    path = put("faces.zip", GOOD)
    with unpacking(mock.Mock(side_effect=[None, OSError(28, "No space left on device")])):
        refused(lambda: photos.unzip(path), "faces.zip cannot be unpacked into data (No space left on device)")
    assert in_data() == ([], []) and len(list(photos.unzip(path).iterdir())) == 5


# --- Images -----------------------------------------------------------------------------------------------------------

def test_image_names():
    assert all(map(photos.is_image_name, ["a.jpg", "a/b.PNG", "./a.webp", "../a.tiff", "a\\b.jpeg", "a.b/c.d.bmp"]))
    assert not any(map(photos.is_image_name, [
        "a", "a.txt", ".jpg", ".a.jpg", "__MACOSX/a.jpg", "a/.b/c.jpg", "a\\.b\\c.jpg", "a.jpg/b", "a.zip", ""]))


def test_images_come_in_order_of_name():
    folder = folder_of_images(".images/b", 3).parent
    Image.fromarray(pixels(64, 64, 3, seed=9)).save(folder / "a.png")
    images = photos.load_images(folder, 64)
    assert images.dtype == torch.uint8 and images.is_contiguous()
    assert np.array_equal(images.permute(0, 2, 3, 1), [pixels(64, 64, 3, seed=seed) for seed in (9, 0, 1, 2)])


def test_shrinking_is_the_mean_of_blocks_of_the_middle_square_and_enlarging_is_smooth():
    Image.fromarray(pixels(64, 100, 3)).save("1.png")
    blocks = pixels(64, 100, 3)[:, 18:82].reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(photos.decode("1.png", 32) - blocks).max() <= 1
    Image.linear_gradient("L").resize((16, 16)).save("2.png")
    assert len(np.unique(photos.decode("2.png", 32))) > 16


def test_large_jpegs_are_decoded_small():
    Image.new("RGB", (800, 1200)).save("1.jpg")
    with mock.patch.object(photos.ImageOps, "fit", wraps=photos.ImageOps.fit) as fit:
        photos.decode("1.jpg", 64)
    assert fit.call_args.args[0].size == (200, 300)


@pytest.mark.parametrize("name", ODD)
def test_odd_image(name, capsys, recwarn):
    content, left, right = ODD[name]
    put(f"faces/{name}", content)
    (image,) = photos.load_images("faces", 32).int()
    for column, colour in ((4, left), (28, right)):
        assert (image[:, 16, column] - torch.tensor(colour)).abs().max() <= 3
    assert capsys.readouterr().out == "" and not recwarn.list
    assert np.array_equal(photos.face(f"faces/{name}", 32), image[None].permute(0, 2, 3, 1))


@pytest.mark.parametrize("name", JUNK, ids=ascii)
def test_junk(name, capsys, recwarn):
    put(f"faces/{name}", JUNK[name])
    refused(lambda: photos.face(f"faces/{name}", 32), "is not an image that can be read; give the path of a JPEG or PNG")
    refused(lambda: photos.load_images("faces", 32), "'faces' does not hold an image (.bmp, .gif,")
    assert capsys.readouterr().out == f"Left out 1 of 1 files that are not images: {repr(name)[1:-1]}\n"
    put("faces/good.png", PNG)
    assert len(photos.load_images("faces", 32)) == 1 and not recwarn.list


def test_images_of_too_many_pixels_are_junk(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # Pillow warns from here on, and raises from twice as many on
    put(folder_of_images("images", 1) / "good.png", PNG)
    assert len(photos.load_images("images", 32)) == 1 and not recwarn.list


def test_junk_is_counted_named_and_passed_over(capsys):
    folder = folder_of_images("images", 3)
    for letter in "abcd":
        put(folder / f"-{letter}.jpg", b"junk")
    images = photos.load_images(folder, 32)
    assert capsys.readouterr().out == "Left out 4 of 7 files that are not images: -a.jpg, -b.jpg, -c.jpg, ...\n"
    assert torch.equal(photos.load_images(folder, 32, limit=99), images) and len(images) == 3
    assert torch.equal(photos.load_images(folder, 32, limit=2), images[:2])


def test_folders_without_images():
    refused(lambda: photos.load_images("absent", 32), "The data folder 'absent' does not exist (looked in ")
    put("faces/.hidden/1.png", PNG)
    refused(lambda: photos.load_images("faces", 32), "The data folder 'faces' does not hold an image")


@posix
def test_links_and_pipes_are_not_waited_for():
    folder = folder_of_images("images", 2)
    for target, name in ((folder.resolve(), "again"), ("nowhere", "broken.png"), ("0000.png", "linked.png")):
        os.symlink(target, folder / name)
    os.mkfifo(folder / "pipe.png")
    assert len(photos.load_images(folder, 32)) == 3


def test_threads_keep_the_order_and_stop_at_the_limit(monkeypatch):
    second, shut, decoded = threading.Event(), threading.Event(), []

    class Pool(ThreadPoolExecutor):
        def shutdown(self, **options):
            super().shutdown(**options | {"wait": False})
            shut.set()
            super().shutdown()

    def decode(number, size):
        decoded.append(number)
        if number == 127:
            second.set()
        assert number != 0 or second.wait(60)  # the second chunk is ready before the first
        assert number < 128 or shut.wait(60)
        return None if number % 10 == 3 else np.full((size, size, 3), number % 256, np.uint8)
    monkeypatch.setattr(photos, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(photos, "decode", decode)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    images, junk = photos.decode_all(range(640), 2, 90)
    assert junk == list(range(3, 100, 10)) and max(decoded) < 256
    assert images[:, 0, 0, 0].tolist() == [number for number in range(100) if number % 10 != 3]


# --- The cache --------------------------------------------------------------------------------------------------------

@pytest.fixture
def keep(monkeypatch):
    monkeypatch.setattr(photos, "WORTH_KEEPING", -1)


def test_second_time_comes_from_the_cache(keep, capsys):
    folder = put(folder_of_images("images", 4) / "junk.png", b"junk").parent
    first, said = photos.load_images(folder, 32), capsys.readouterr().out
    (cache,) = Path("data").glob("cache-*.npz")
    with mock.patch.object(photos, "decode_all", None):
        assert torch.equal(photos.load_images(folder, 32), first) and capsys.readouterr().out == said
    whole = cache.read_bytes()
    for damage in (b"", whole[:-1], whole[:5000] + b"XXXX" + whole[5004:]):
        cache.write_bytes(damage)
        assert torch.equal(photos.load_images(folder, 32), first) and cache.read_bytes() == whole


def test_other_files_or_sizes_do_not_come_from_the_cache(keep):
    def first(path, colour, seconds, size=32):
        os.utime(put(path, encoded("BMP", Image.new("RGB", (40, 40), colour))), (seconds, seconds))
        return photos.load_images("faces", size)[0, 0, 0].tolist()
    first("faces/b.bmp", "red", 1)
    assert first("faces/c.bmp", "black", 1) == [255] * 32
    os.rename("faces/b.bmp", "faces/d.bmp")  # size and time of the first and of the second stay what they were
    assert first("faces/c.bmp", "black", 1) == [0] * 32
    assert first("faces/c.bmp", "red", 2) == [255] * 32 and first("faces/c.bmp", "red", 2, 8) == [255] * 8


def test_the_three_newest_caches_are_kept(keep):
    for age in range(5):
        os.utime(put(f"data/cache-{age}.npz", b""), (9 - age, 9 - age))
    photos.load_images(folder_of_images("images", 1), 32)
    kept = {path.name for path in Path("data").glob("cache-*.npz")}
    assert len(kept) == 3 and {"cache-0.npz", "cache-1.npz"} < kept


def test_images_do_without_a_cache(keep, monkeypatch):
    folder = folder_of_images("images", 2)
    with mock.patch.object(photos, "whole_file", side_effect=OSError(28, "No space left on device")):
        assert len(photos.load_images(folder, 32)) == 2
    with filelock.FileLock("data/.cache.lock"):  # another run writes its own
        assert len(photos.load_images(folder, 32)) == 2
    monkeypatch.setattr(photos, "WORTH_KEEPING", 10**9)
    assert len(photos.load_images(folder, 32)) == 2
    assert not list(Path("data").glob("*.npz"))


# --- Enough, and different --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("held_out, sentence", [
    (torch.rand(1, 3, 8, 8), "faces holds 10 images, seven in eight of them to train on: too few for a batch of 8"),
    (torch.rand(1, 3, 8, 8).expand(5, 3, 8, 8), "faces holds images that are all alike or without anything on them"),
    (torch.rand(5, 3, 1, 1).expand(5, 3, 8, 8), "faces holds images that are all alike or without anything on them"),
], ids=["few", "alike", "plain"])
def test_faces_to_measure_against(held_out, sentence):
    refused(lambda: photos.check_faces(9, held_out, 8, "faces"), sentence)
    refused(lambda: photos.check_faces(7, torch.rand(3, 3, 8, 8), 8, "faces"), "faces holds 10 images, seven in eight")
    photos.check_faces(8, torch.rand(2, 3, 8, 8), 8, "faces")
