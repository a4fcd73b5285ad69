"""The makers' tools."""
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import helpers
from plumbing import files, photos
from plumbing.story import definitions
from tools import keep_generator, show_framing, zip_faces


@pytest.fixture
def run():
    """A folder with a generator."""
    about = {"z_size": 20, "conv_dim": 8, "image_size": 32, "epochs": 3}
    Path("run").mkdir()
    for name, content in helpers.generator_files(definitions().Generator(20, 8).state_dict(), about).items():
        files.write(Path("run") / name, content)


def test_keep_generator(run, monkeypatch, capsys):
    Path("kept").mkdir()
    monkeypatch.setattr(sys, "argv", ["keep_generator", "run", "kept"])
    with pytest.raises(SystemExit):
        keep_generator.main()
    assert capsys.readouterr().err.startswith("run does not hold a finished run: it has no metrics.json; finish it")
    assert not any(Path("kept").iterdir())
    parameters = {"dataset": "/a/path", "output_dir": "/b", "start_from": "/a/first/", "seed": 1}
    files.write_json("run/metrics.json", {"parameters": parameters, "measures": {"swd": 20}})
    keep_generator.main()
    whole, half = (Path(folder, "generator.safetensors").stat().st_size for folder in ("run", "kept"))
    assert 1.9 < whole / half < 2.1
    about = json.loads(Path("kept/generator.json").read_text())
    assert about["epochs"] == 3
    assert about["run"] == {"parameters": {"start_from": "first", "seed": 1}, "measures": {"swd": 20}}
    difference = helpers.load_generator("kept")(50).astype(int) - helpers.load_generator("run")(50)
    assert np.abs(difference).max() <= 2 and np.abs(difference).mean() < 0.1


def test_zip_faces(run, monkeypatch):
    zip_faces.zip_faces("run", "faces.zip", count=10)
    again = Path("faces.zip").read_bytes()
    zip_faces.zip_faces("run", "faces.zip", count=10)
    assert Path("faces.zip").read_bytes() == again
    folder = photos.unzip("faces.zip")
    assert (folder / "processed_celeba_small/celeba/000009.jpg").is_file()
    images = photos.load_images(folder, 32).permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(images - helpers.load_generator("run")(10)).mean() < 10
    monkeypatch.setattr(sys, "argv", ["zip_faces", "nowhere", "faces.zip"])
    with pytest.raises(SystemExit):
        zip_faces.main()


def test_celebas_photographs_and_the_embedded_faces_have_their_eyes_in_one_place():
    whole, _, cropped, embedded = [axis.images[0].get_array() for axis in show_framing.figure().axes]
    assert whole.shape == (218, 178, 3) and cropped.shape == embedded.shape == (64, 64, 3)
    for columns in (slice(16, 27), slice(38, 49)):  # one eye, the other: the darkest row below the brow
        rows = [22 + np.asarray(picture, float)[22:40, columns].mean(2).min(1).argmin() for picture in (cropped, embedded)]
        assert abs(rows[0] - rows[1]) <= 2 and 24 <= rows[1] <= 28
