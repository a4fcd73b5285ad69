"""The benchmarks run, at a size that takes seconds, and count what they say they count."""
import contextlib
import json
import sys
import zipfile

import numpy as np
import pytest
import torch

from conftest import make_faces, set_up

from benchmarks import quality, throughput
from plumbing import runs, speed
from plumbing.story import definitions


@pytest.fixture
def small(monkeypatch, tmp_path):
    """throughput on 50 faces with steps of 8."""
    make_faces(tmp_path / "faces" / "all", count=50)
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for path in sorted((tmp_path / "faces").rglob("*.jpg")):
            archive.write(path, path.relative_to(tmp_path))
    for name, value in {"BATCH": 8, "STEPS": 5, "ROUNDS": 2, "ZIP": tmp_path / "faces.zip"}.items():
        monkeypatch.setattr(throughput, name, value)
    return tmp_path / "faces"


@pytest.mark.parametrize("auto", ["fp32", "bf16"])
def test_throughput(small, monkeypatch, capsys, auto):
    monkeypatch.setattr(speed, "choose_precision", lambda name, device: (auto, "so it is said"))
    monkeypatch.setattr(runs, "choose_device", lambda: torch.device("cpu"))
    kinds = ["courses", "defaults", *dict.fromkeys([f"{auto}, batches of 8", "fp32, batches of 8"])]
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--json"])
    throughput.main()
    results = json.loads(capsys.readouterr().out)
    assert list(results["rates"]) == kinds and all(len(rates) == 2 for rates in results["rates"].values())
    assert list(results["floor"]) == kinds[1:] and results["decoded_files"] == 100
    assert all(len(floor) == 2 and min(floor) > 0 for floor in results["floor"].values()) and 0 < results["outside"] < 1
    text = "\n".join(throughput.table(results))
    assert text.count("| ratio |") == len(kinds) - 1 and f"{auto}, batches of 16 (the defaults)" in text
    shares = results["profile"]
    assert list(shares) == [*throughput.KINDS, "all else"] and min(shares.values()) > 0
    assert sum(shares.values()) == pytest.approx(1) and shares["convolutions, backward"] > shares["the average"]


def test_the_courses_loop_trains_both_networks_each_step(small):
    module = definitions()
    networks = []
    for name in ("Discriminator", "Generator"):
        kind = getattr(module, name)
        setattr(module, name, lambda *sizes, kind=kind: networks.append(kind(*sizes)) or networks[-1])
    loop = throughput.courses_loop(module, small, 8)
    next(loop)
    for _ in range(6):  # into a second epoch
        before = [[p.clone() for p in network.parameters()] for network in networks]
        next(loop)
        for network, old in zip(networks, before, strict=True):
            assert not any(map(torch.equal, network.parameters(), old))


def test_the_floor_counts_every_convolution_and_product_once():
    module = definitions()
    D, G = module.Discriminator(4), module.Generator(10, 4)
    with throughput.Products() as seen:
        D(G(torch.rand(8, 10))).sum().backward()
    names = [name.overloadpacket.__name__ for name, _ in seen.calls]
    assert names.count("convolution") == names.count("convolution_backward") == 8
    assert len(names) == 16 + 2 + 3  # linear layers: two forwards, gradients of two weights and of one input


def test_quality(small, monkeypatch, capsys):
    tiny = {"batch_size": 8, "d_conv_dim": 4, "g_conv_dim": 4, "lr_decay": 3, "lookahead": 2}
    monkeypatch.setattr(quality, "RECIPES", {name: recipe | tiny for name, recipe in quality.RECIPES.items()})
    monkeypatch.setattr(quality, "FACES", 20)
    monkeypatch.setattr(runs, "choose_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(speed, "choose_precision", lambda *_: ("fp32", "as the run to compare with"))
    monkeypatch.chdir(small.parent)
    monkeypatch.setattr(sys, "argv", ["quality.py", "--dataset", "faces", "--images", "130", "--seeds", "2",
                                      "--also", "ema_decay=0"])
    quality.main()
    first = capsys.readouterr().out
    rows = [line.split(" | ") for line in first.splitlines() if line.startswith(("| courses", "| note", "| ema_decay"))]
    assert [row[1:3] for row in rows] == 3 * [["1", "40"], ["2", "80"], ["3", "120"]]
    assert "The courses' recipe is at" in first
    faces = {path.parent.name: np.load(path) for path in sorted(small.parent.glob("runs/quality/*/faces-3.npy"))}
    assert list(faces) == [f"{name}-{seed}" for name in ("courses", "ema_decay 0.0", "notebook") for seed in (0, 1)]
    assert faces["notebook-0"].shape == (20, 32, 32, 3) and faces["notebook-0"].dtype == np.uint8
    assert not np.array_equal(faces["notebook-0"], faces["notebook-1"])

    quality.main()  # again: nothing is trained anew, and what was measured is still there
    assert capsys.readouterr().out == first
    kept = torch.load("runs/quality/notebook-1/checkpoint.pt", weights_only=True)
    whole = set_up(small.parent / "faces", small.parent / "unseen", seed=1, z_size=100, **tiny)
    with contextlib.redirect_stdout(None):
        whole.train(whole.state, whole.celeba_train_loader, 3)
    assert not np.array_equal(faces["notebook-0"], faces["ema_decay 0.0-0"])
    assert whole.state.records == kept["records"]  # as if nobody had looked in between


@pytest.mark.parametrize("text, sentence", [("batch=3", "'batch' is not a parameter of the notebook"),
                                            ("d_lr=fast", "d_lr must be a number, more than 0; it is 'fast'"),
                                            ("seed", "seed must be a whole number")])
def test_quality_refuses_wrong_changes(text, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quality.py", "--also", text])
    with pytest.raises(SystemExit):
        quality.main()
    assert sentence in capsys.readouterr().err
