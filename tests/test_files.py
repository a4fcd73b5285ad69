"""plumbing/files.py: a file appears whole or not at all, whatever happens to its writer, its disk or its folder."""
import errno
import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import child, pixels, posix, refused

import helpers
from plumbing import files


def folder():
    """What is in this test's folder: {path: content}."""
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def test_new_content_replaces_the_old():
    for content in (b"old", b"new"):
        files.write("file", content)
        assert folder() == {"file": content}


def test_json_has_no_nan():
    files.write_json("file", {"x": 1})
    for number in (math.nan, math.inf):
        with pytest.raises(ValueError):
            files.write_json("file", {"x": number})
    assert json.loads(Path("file").read_text()) == {"x": 1} and len(folder()) == 1


def test_a_figure_is_a_png_whatever_its_name():
    files.save_figure("figure", helpers.show_faces(pixels(3, 8, 8, 3)))
    assert folder()["figure"].startswith(b"\x89PNG") and len(folder()) == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, RuntimeError])
def test_a_writer_that_fails(error):
    files.write("file", b"old")
    with pytest.raises(error), files.whole_file("file") as file:
        file.write(b"new")
        raise error
    assert folder() == {"file": b"old"}


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_full_disk(monkeypatch, function):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    files.write("file", b"old")
    monkeypatch.setattr(os, function, full)
    assert refused(lambda: files.write("file", b"new")) == (
        "file cannot be written (No space left on device); the previous file is unchanged. "
        "Free some space or choose another output_dir.")
    assert folder() == {"file": b"old"}


@posix
@pytest.mark.parametrize("save", [lambda file: file.write(bytes(20_000)),
                                  lambda file: torch.save(torch.ones(20_000), file)], ids=["bytes", "torch.save"])
def test_a_file_beyond_the_limit_of_its_size(save):
    def write():
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        with files.whole_file("file") as file:
            save(file)

    files.write("file", b"old")
    process = child(refused, write, "file cannot be written (File too large); the previous file is unchanged")
    process.join()
    assert process.exitcode == 0 and folder() == {"file": b"old"}


@pytest.mark.parametrize("path", ["missing/file", "taken/file", "folder"])
def test_no_place_for_the_file(path):
    Path("taken").touch()
    Path("folder").mkdir()
    refused(lambda: files.write(path, b"new"), f"{path} cannot be written (")
    assert folder() == {"taken": b""}


@pytest.mark.skipif(os.name == "nt", reason="Windows does not remove an open file")
def test_the_folder_goes_while_a_file_is_written():
    def write():
        with files.whole_file("run/file") as file:
            os.unlink(file.name)
            os.rmdir("run")

    Path("run").mkdir()
    refused(write, "run/file cannot be written (")
    assert not os.listdir()


@posix
def test_a_killed_writer_leaves_the_old_file():
    def write():
        with files.whole_file("file") as file:
            file.write(bytes(100_000))
            os.kill(os.getpid(), signal.SIGKILL)

    files.write("file", b"old")
    process = child(write)
    process.join()
    assert process.exitcode == -signal.SIGKILL and Path("file").read_bytes() == b"old"
    files.write("file", b"new")
    assert folder() == {"file": b"new"}  # nor is anything left of the killed writer
