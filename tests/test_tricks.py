"""benchmarks/tricks.py at a size that takes seconds."""
import json
import sys
from pathlib import Path

import pytest
from conftest import make_faces

from benchmarks import tricks

TINY = {"batch_size": 8, "d_conv_dim": 4, "g_conv_dim": 4, "z_size": 10, "n_epochs": 1, "device": "cpu", "precision": "fp32"}


def test_tricks(monkeypatch, capsys):
    make_faces(Path("faces"))
    monkeypatch.setattr(tricks, "RECIPES", {"the defaults": TINY, "no averaging": TINY | {"ema_decay": 0.0}})
    monkeypatch.setattr(sys, "argv", ["tricks", "--dataset", "faces", "--seeds", "1", "--jobs", "2", "--keep", "kept"])
    tricks.main()
    text = Path("kept/tricks.md").read_text()
    assert text in capsys.readouterr().out and Path("kept/tricks.png").stat().st_size > 1000
    metrics = {name: json.loads(Path(f"runs/tricks/{name}-0/metrics.json").read_text())
               for name in ("the-defaults", "no-averaging")}
    assert metrics["no-averaging"]["parameters"]["ema_decay"] == 0
    for name, found in metrics.items():
        swd = f"{found['measures']['swd']:.1f}"
        assert f"| {name.replace('-', ' ')} | {swd} | " in text
    monkeypatch.setattr(tricks.subprocess, "run", None)
    tricks.main()  # again: nothing is run
    assert Path("kept/tricks.md").read_text() == text


def test_a_run_that_fails_is_named(monkeypatch):
    with pytest.raises(SystemExit, match="bad-0 did not come to its end: .*batch_size must be"):
        tricks.play(TINY | {"batch_size": 1}, 0, Path("bad-0").resolve(), Path("faces").resolve(), 1)
