"""benchmarks/compare.py, on folders that look like runs."""
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

import helpers
from benchmarks import compare
from plumbing.story import ROOT, definitions


def a_run(folder, swd=20.0, close_pairs=100, contrast=1.04, speed=280.4, machine="a CPU, 2 threads", **parameters):
    """A folder with the metrics that are compared, and a generator."""
    Path(folder).mkdir(parents=True)
    parameters = {"dataset": "faces", "output_dir": folder, "batch_size": 16, "g_lr": 0.0004, "augment": "", "seed": 0,
                  "device": "auto", "precision": "auto", "resume": False} | parameters
    Path(folder, "metrics.json").write_text(json.dumps({
        "parameters": parameters, "device_name": machine, "precision": "bf16", "images": 40,
        "versions": {"torch": "2.9"}, "measures": {"swd": swd, "close_pairs": close_pairs, "close_pairs_expected": 50.0},
        "images_per_second": speed, "comparison": {"this run": {"contrast": contrast}}}))
    about = {"z_size": 10, "conv_dim": 4, "image_size": 32}
    for name, content in helpers.generator_files(definitions().Generator(10, 4).state_dict(), about).items():
        Path(folder, name).write_bytes(content)


def lines(text):
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_runs_that_differ_in_their_seed_share_a_row(capsys):
    a_run("runs/a-0", swd=20.04)
    a_run("runs/a-1", swd=30, seed=1, close_pairs=200, contrast=1, speed=300, resume=True)
    a_run("runs/deeper/b", swd=50.0, batch_size=64, augment="flip")
    text, figure = compare.compare_runs("runs")
    assert lines(text) == [
        ["batch_size", "augment", "seed", "distance", "close pairs, times those of the data", "contrast", "images/s"],
        ["16", '""', "0, 1", "25.0 (20.0 to 30.0)", "3.0 (2.0 to 4.0)", "1.02 (1.00 to 1.04)", "290"],
        ["64", "flip", "0", "50.0", "2.0", "1.04", "280"]]
    assert text.splitlines()[1] == "|---|---|---|---|---|---|---|"
    assert text.endswith("\n\nRuns: 3; the same in all: device a CPU, 2 threads, precision bf16, torch 2.9, images 40.\n")
    assert [axis.get_ylabel() for axis in figure.axes] == ["a-0", "a-1", "deeper/b"]
    drawn = helpers.grid(helpers.load_generator("runs/deeper/b")(12), 12)
    assert (figure.axes[2].images[0].get_array() == drawn).all() and capsys.readouterr() == ("", "")


def test_machines_that_differ_are_told_apart():
    a_run("runs/a")
    a_run("runs/b", machine="a GPU")
    assert [row[0] for row in lines(compare.compare_runs("runs")[0])] == ["device", "a CPU, 2 threads", "a GPU"]


def test_a_parameter_that_only_one_run_has():
    a_run("runs/a")
    a_run("runs/b", crop="a|b")
    assert [row[0] for row in lines(compare.compare_runs("runs")[0])] == ["crop", "not known", "a\\|b"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"parameters": {"seed": 0}}', "[" * 100_000, "\xff"],
                         ids=["empty", "list", "object", "half", "deep", "not UTF-8"])
def test_metrics_of_something_else_are_left_out_and_counted(content, capsys):
    a_run("runs/a")
    Path("runs/b").mkdir()
    Path("runs/b/metrics.json").write_text(content, "latin-1")
    text, figure = compare.compare_runs("runs")
    assert len(lines(text)) == 2 and "Runs: 1;" in text and len(figure.axes) == 1
    said = capsys.readouterr().err
    assert said.startswith("Left out 1 of 2 files that are not the metrics of a run of this notebook: ")
    assert str(Path("runs/b/metrics.json")) in said and said.count("\n") == 1


def test_a_generator_that_cannot_be_drawn_from_has_no_row_in_the_picture(capsys):
    a_run("runs/a")
    a_run("runs/b", seed=1)
    Path("runs/a/generator.safetensors").unlink()
    text, figure = compare.compare_runs("runs")
    assert "| 0, 1 |" in text and [axis.get_ylabel() for axis in figure.axes] == ["b"]
    assert "does not hold a generator" in capsys.readouterr().err
    Path("runs/b/generator.json").unlink()
    assert compare.compare_runs("runs")[1] is None


def test_the_program_keeps_table_and_picture(monkeypatch, capsys):
    a_run("runs/one")
    monkeypatch.setattr(sys, "argv", ["compare", "runs/one"])
    compare.main()
    text = Path("runs/one/one.md").read_text()
    assert text in capsys.readouterr().out and lines(text)[0][0] == "seed"
    monkeypatch.setattr(sys, "argv", ["compare", "runs", "--keep", "new/kept"])
    compare.main()
    assert Path("new/kept/runs.md").read_text() == text and Image.open("new/kept/runs.png").width > 500
    monkeypatch.setattr(sys, "argv", ["compare", "runs", "--keep", "new/kept/runs.md"])
    with pytest.raises(SystemExit, match="runs.md"):
        compare.main()
    for nothing in ("new", "absent"):
        monkeypatch.setattr(sys, "argv", ["compare", nothing])
        with pytest.raises(SystemExit, match=f"'{nothing}' does not hold a finished run, which is a folder with"):
            compare.main()


def test_the_table_of_the_recipes_is_the_one_that_was_kept():
    kept = (ROOT / "assets/sweep.md").read_text()
    assert len(lines(kept)) == 3 and kept in (ROOT / "recipes/README.md").read_text("utf-8")
