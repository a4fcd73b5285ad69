"""The programs for other devices and larger faces, on this processor, at a size that takes seconds."""
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import make_faces

from benchmarks import gpu_check, sizes, throughput
from plumbing import runs, speed

CPU = torch.device("cpu")
TINY = {"d_conv_dim": 4, "g_conv_dim": 4, "z_size": 10, "batch_size": 8}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """gpu_check on 50 faces, and a papermill that leaves what a run leaves, or fails."""
    make_faces(tmp_path / "faces" / "all", count=50)
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for path in sorted((tmp_path / "faces").rglob("*.jpg")):
            archive.write(path, path.relative_to(tmp_path))
    monkeypatch.setattr(throughput, "ZIP", tmp_path / "faces.zip")
    for name, value in {"FACES": 100, "BATCHES": (8, 16), "ROUNDS": 1, "PARAMETERS": TINY}.items():
        monkeypatch.setattr(gpu_check, name, value)
    monkeypatch.setattr(speed, "choose_precision", lambda name, device: ("bf16", "so it is said"))
    answer = SimpleNamespace(returncode=0, stderr="a line\nValueError: no such device.\n", command=None)

    def papermill(command, **options):
        answer.command = command
        Path("run").mkdir()
        Path("run/metrics.json").write_text(json.dumps({
            "images_per_second": 123.4, "train_seconds": 5.67,
            "measures": {"swd": 20, "swd_floor": 17, "swd_untrained": 212}}))
        Path("run.ipynb").write_text(json.dumps(["holds: one", "DOES NOT HOLD: two", "holds: three"]))
        return answer
    monkeypatch.setattr(gpu_check.subprocess, "run", papermill)
    return answer


def table(monkeypatch, capsys, *arguments):
    """{what: (found, wanted)} that gpu_check prints."""
    monkeypatch.setattr(sys, "argv", ["gpu_check", *arguments])
    gpu_check.main()
    head, rule, *lines = capsys.readouterr().out.splitlines()
    assert (head, rule) == ("| what | found | wanted |", "|---|---|---|")
    return {what: (found, wanted) for what, found, wanted in (line[2:-2].split(" | ") for line in lines)}


def test_gpu_check(small, monkeypatch, capsys):
    before = Path.cwd()
    rows = table(monkeypatch, capsys, "--device", "cpu")
    assert Path.cwd() == before and not torch.are_deterministic_algorithms_enabled()
    assert not [row for row in rows.values() if "FAILED" in row[0]]
    assert rows["precision"] == ("bf16: so it is said", "")
    again = "a run that is resumed is one that never stopped, bit for bit"
    assert rows[again] == rows[f"{again} with torch.use_deterministic_algorithms"] == ("yes", "yes")
    assert rows["operations without a deterministic form"] == ("none", "none")
    for batch in (8, 16):
        rates, _ = rows[f"images/s in batches of {batch}: the notebook, the courses' loop, ratio"]
        ours, theirs, ratio = (float(rate.replace(",", "")) for rate in rates.split(", "))
        assert ours > 0 < theirs and ratio == pytest.approx(ours / theirs, rel=0.2)
        assert rows[f"memory of the device at its peak, batches of {batch}"] == ("not run: cpu does not count it", "")
    epoch = rows["an epoch of 96 faces in batches of 8: seconds, images/s"][0]
    seconds, rate = (float(number.replace(",", "")) for number in epoch.split(", "))
    assert seconds > 0 < rate
    assert rows["the default run: images/s, seconds of training"] == ("123, 5.7", "")
    assert rows["its distance (that of training faces, of the untrained generator)"] == ("20.0 (17.0, 212.0)", "")
    assert rows["claims of its verdict that do not hold"] == ("1", "0") and "device" in small.command


def test_a_check_that_fails_is_a_row(small, monkeypatch, capsys):
    small.returncode = 1
    monkeypatch.setattr(gpu_check, "CHECKS", {name: gpu_check.CHECKS[name] for name in ("the default run",)} | {
        "the next": lambda device, precision, folder: iter([("this", "found", "wanted")])})
    rows = table(monkeypatch, capsys, "--device", "cpu")
    assert rows["the default run"] == ("FAILED: RuntimeError: ValueError: no such device.", "")
    assert rows["this"] == ("found", "wanted")


def test_a_step_that_differs_is_seen(small, monkeypatch):
    """The meta device cannot tell numbers, so the other device is this one with a fault."""
    right, wrong = (gpu_check.one_step(CPU, "fp32") for _ in range(2))
    assert all(map(torch.equal, right, wrong))
    wrong[2] = wrong[2] * 1.01
    steps = {"cpu": right, "cuda": wrong}
    monkeypatch.setattr(gpu_check, "one_step", lambda device, precision: steps[device.type])
    (_, found, wanted), (_, losses, _) = gpu_check.same_step(torch.device("cuda"), "fp32", None)
    assert (found, wanted) == ("0.0e+00, 1.0e-02", "under 0.001") and losses.count("(") == 2
    (_, found, wanted), _ = gpu_check.same_step(CPU, "bf16", None)
    assert wanted == "under 0.25"
    assert list(gpu_check.same_step(CPU, "fp32", None))[0][1] == "not run: this is the processor"


@pytest.mark.parametrize("arguments, said", [
    ([], "PyTorch finds no accelerator here, so nothing was run"), (["--device", "cuda:7"], "does not find it here")])
def test_no_accelerator(small, monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        table(monkeypatch, capsys, *arguments)
    assert said in capsys.readouterr().err


def test_sizes(monkeypatch, capsys):
    pytest.importorskip("resource")
    monkeypatch.setattr(runs, "choose_device", lambda: CPU)
    monkeypatch.setattr(sizes, "PARAMETERS", TINY)
    found = {}
    for size in (32, 128):
        monkeypatch.setattr(sys, "argv", ["sizes", "--one", str(size), "4", "--steps", "2"])
        sizes.main()
        found[size, 4] = json.loads(capsys.readouterr().out)
        D, G = (kind(*given, size) for kind, given in ((sizes.definitions().Discriminator, (4,)),
                                                       (sizes.definitions().Generator, (10, 4))))
        assert found[size, 4]["D"] == sum(p.numel() for p in D.parameters())
        assert found[size, 4]["G"] == sum(p.numel() for p in G.parameters())
        assert found[size, 4]["images/s"] > 0 and 50 < found[size, 4]["MB"] < 10**6
    monkeypatch.setattr(sizes, "SIZES", (32, 128))
    monkeypatch.setattr(sizes, "BATCHES", (4,))
    answers = [json.dumps({"D": 2_840_000, "G": 3e6, "images/s": 12.34, "MB": 5678.9})] * 2
    monkeypatch.setattr(sizes.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0, stdout=answers.pop()))
    monkeypatch.setattr(sys, "argv", ["sizes"])
    sizes.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == [f"| {s}x{s} | 4 | 2.8, 3.0 million | 12.3 | 5,679 MB |" for s in (32, 128)]
    assert lines[-1].endswith("Memory is all of the process, PyTorch itself too.")
