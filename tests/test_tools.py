"""The makers' tools."""
import json
import sys
from pathlib import Path
from unittest import mock

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from conftest import make_faces, refused

import helpers
from plumbing import files, photos
from plumbing.story import definitions
from tools import demo, execute_notebook, export_onnx, keep_generator, show_framing, zip_faces


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
    for name, content in (("metrics.json", b'{"parameters": {"see'), ("generator.safetensors", b"cut")):
        whole = Path("run", name).read_bytes() if Path("run", name).exists() else b""
        Path("run", name).write_bytes(content)
        with pytest.raises(SystemExit):
            keep_generator.main()
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and ("is damaged (" in said or "does not hold a generator" in said)
        Path("run", name).write_bytes(whole)
    assert not any(Path("kept").iterdir())
    files.write_json("kept/generator.json", {"directions": ["turns the head"]})  # of the generator before
    parameters = {"dataset": "/a/path", "output_dir": "/b", "start_from": "/a/first/", "seed": 1}
    files.write_json("run/metrics.json", {"parameters": parameters, "measures": {"swd": 20}})
    keep_generator.main()
    whole, half = (Path(folder, "generator.safetensors").stat().st_size for folder in ("run", "kept"))
    assert 1.9 < whole / half < 2.1
    about = json.loads(Path("kept/generator.json").read_text())
    assert about["epochs"] == 3 and "directions" not in about
    assert about["run"] == {"parameters": {"start_from": "first", "seed": 1}, "measures": {"swd": 20}}
    difference = helpers.load_generator("kept")(50).astype(int) - helpers.load_generator("run")(50)
    assert np.abs(difference).max() <= 2 and np.abs(difference).mean() < 0.1


def test_zip_faces(run, monkeypatch, capsys):
    make_faces(Path("photos"))
    picture = Image.open("photos/000.jpg")
    picture.save("photos/twin.png")  # so that the closest pair is as good as equal
    zip_faces.zip_faces("run", "faces.zip", "photos", count=10)
    again = Path("faces.zip").read_bytes()
    zip_faces.zip_faces("run", "faces.zip", "photos", count=10)
    assert Path("faces.zip").read_bytes() == again
    assert capsys.readouterr().out.startswith("10 of 500 faces drawn: the others came too late or nearer than 0.00")
    folder = photos.unzip("faces.zip")
    assert (folder / "processed_celeba_small/celeba/000009.jpg").is_file()
    images = photos.load_images(folder, 32).permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(images - helpers.load_generator("run")(10)).mean() < 10
    Path("photos/twin.png").unlink()  # now none is as near as what an untrained generator draws
    for arguments, sentence in ((("nowhere", "photos"), "nowhere does not hold a generator"),
                                (("run", "nowhere"), "dataset 'nowhere' does not exist"),
                                (("run", "photos"), "of 5,000 faces drawn only 1 are farther apart than ")):
        monkeypatch.setattr(sys, "argv", ["zip_faces", arguments[0], "faces.zip", arguments[1]])
        monkeypatch.setattr(zip_faces.zip_faces, "__defaults__", (1.0, 10))
        with pytest.raises(SystemExit):
            zip_faces.main()
        assert capsys.readouterr().err.startswith(sentence) and Path("faces.zip").read_bytes() == again


def test_no_two_faces_are_alike():
    people = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)  # 0.4 apart, and 0.003 from themselves

    def sample(count, seed=0):
        rng = np.random.default_rng(seed)
        return np.clip(people[rng.integers(0, 60, count)].astype(int) + rng.integers(-1, 2, (count, 8, 8, 3)), 0, 255).astype(np.uint8)

    faces, drawn = zip_faces.unlike(sample, 50, 0.1, part=20)
    assert len(faces) == 50 and drawn % 20 == 0 and helpers.pair_distances(faces).min() > 0.1
    assert np.array_equal(faces[:10], zip_faces.unlike(sample, 10, 0.1, part=20)[0])  # the same order every time
    refused(lambda: zip_faces.unlike(sample, 61, 0.1, part=10), "of 610 faces drawn only 60 are farther apart than 0.100")


def test_demo(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo", "nowhere", "page"])
    with pytest.raises(SystemExit):
        demo.main()
    assert capsys.readouterr().err.startswith("nowhere does not hold a generator of this notebook")
    assert not Path("page").exists()
    monkeypatch.setattr(sys, "argv", ["demo", "run", "page"])
    demo.main()
    assert '<body data-folder="./">' in Path("page/index.html").read_text()
    assert np.array_equal(helpers.load_generator("page")(5), helpers.load_generator("run")(5))


@pytest.mark.parametrize("image_size, half", [(32, False), (64, True)])
def test_export_onnx(image_size, half):
    pytest.importorskip("onnx", reason="needs the packages onnx and onnxruntime")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the packages onnx and onnxruntime")
    torch.manual_seed(0)
    G = definitions().Generator(20, 8, image_size)
    for _ in range(20):
        G(2 * torch.rand(16, 20) - 1)  # so that the running statistics are not those of the start
    weights = (G.half() if half else G).state_dict()
    about = {"z_size": 20, "conv_dim": 8, "image_size": image_size}
    for name, content in helpers.generator_files(weights, about).items():
        files.write(name, content)
    measured = export_onnx.export_onnx(".")
    assert measured["largest difference"] < 1e-5
    sizes = [Path(name).stat().st_size for name in ("generator.onnx", "generator.safetensors")]
    assert measured["MB"] == sizes[0] / 1e6 and abs(sizes[0] - sizes[1]) < 5000
    session = onnxruntime.InferenceSession("generator.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 7):
        z = 2 * torch.rand(count, 20) - 1
        images = torch.from_numpy(session.run(None, {"z": z.numpy()})[0])
        difference = helpers.to_uint8(images).astype(int) - helpers.load_generator(".")(z=z)
        assert images.shape == (count, 3, image_size, image_size) and np.abs(difference).max() <= 1
    weights["t_conv1.1.running_mean"] += 1  # a model of other weights is refused
    other = export_onnx.onnx_model(weights)
    with mock.patch.object(export_onnx, "onnx_model", lambda weights: other):
        refused(lambda: export_onnx.export_onnx(".", "other.onnx"), "onnxruntime draws other faces than PyTorch")
    assert not Path("other.onnx").exists()


def test_export_onnx_without_its_packages(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(sys, "argv", ["export_onnx", "run"])
    with pytest.raises(SystemExit):
        export_onnx.main()
    assert capsys.readouterr().err.endswith("pip install onnx onnxruntime.\n")
    assert not Path("run/generator.onnx").exists()


def test_celebas_photographs_and_the_embedded_faces_have_their_eyes_in_one_place():
    whole, _, cropped, embedded = [axis.images[0].get_array() for axis in show_framing.figure().axes]
    assert whole.shape == (218, 178, 3) and cropped.shape == embedded.shape == (64, 64, 3)
    for columns in (slice(16, 27), slice(38, 49)):  # one eye, the other: the darkest row below the brow
        rows = [22 + np.asarray(picture, float)[22:40, columns].mean(2).min(1).argmin() for picture in (cropped, embedded)]
        assert abs(rows[0] - rows[1]) <= 2 and 24 <= rows[1] <= 28


def test_pictures_are_described():
    def picture(**metadata):
        return nbformat.v4.new_output("display_data", {"image/png": ""}, metadata=metadata)

    said = nbformat.v4.new_output("stream", text="a line")
    cell = nbformat.v4.new_code_cell('show(a, title="One")\nshow(b, title=f"Two of {n}")\nshow(c)',
                                     outputs=[picture(), said, picture(), picture(**{"image/png": {"alt": "own"}}), picture()])
    execute_notebook.describe(cell, "Heading")
    found = [output.metadata["image/png"]["alt"] for output in cell.outputs if output is not said and "metadata" in output]
    assert found == ["One", "Two of", "own", "Heading"]
