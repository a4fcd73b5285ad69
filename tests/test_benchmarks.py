"""The benchmarks run, at a size that takes seconds, and count what they say they count."""
import json
import sys
import zipfile

import pytest
import torch

import helpers
from benchmarks import throughput
from notebook import definitions
from test_notebook import make_faces


@pytest.fixture
def small(monkeypatch, tmp_path):
    """throughput on 44 faces with steps of 8."""
    make_faces(tmp_path / "faces" / "all", count=44)
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for path in sorted((tmp_path / "faces").rglob("*.jpg")):
            archive.write(path, path.relative_to(tmp_path))
    for name, value in {"BATCH": 8, "STEPS": 3, "ROUNDS": 2, "ZIP": tmp_path / "faces.zip"}.items():
        monkeypatch.setattr(throughput, name, value)
    return tmp_path / "faces"


@pytest.mark.parametrize("auto", ["fp32", "bf16"])
def test_throughput(small, monkeypatch, capsys, auto):
    monkeypatch.setattr(helpers, "choose_precision", lambda name, device: (auto, "so it is said"))
    monkeypatch.setattr(helpers, "choose_device", lambda: torch.device("cpu"))
    kinds = ["courses", *dict.fromkeys(["fp32", auto])]
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--json"])
    throughput.main()
    results = json.loads(capsys.readouterr().out)
    assert list(results["rates"]) == kinds and all(len(rates) == 2 for rates in results["rates"].values())
    assert list(results["floor"]) == kinds[1:] and results["decoded_files"] == 88
    assert all(len(floor) == 2 and min(floor) > 0 for floor in results["floor"].values()) and 0 < results["outside"] < 1
    text = "\n".join(throughput.table(results))
    assert text.count("| ratio |") == len(kinds) - 1 and f"{auto} (precision auto)" in text


def test_the_courses_loop_trains_both_networks_each_step(small):
    module = definitions()
    networks = []
    for name in ("Discriminator", "Generator"):
        kind = getattr(module, name)
        setattr(module, name, lambda *sizes, kind=kind: networks.append(kind(*sizes)) or networks[-1])
    loop = throughput.courses_loop(module, small)
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
