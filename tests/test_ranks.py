"""plumbing/ranks.py: two ranks are one run. torchrun starts them, by themselves (two_ranks.py) and with papermill."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import TINY, make_faces, posix, refused, set_up
from test_notebook import end, error_in, project, run  # noqa: F401 (a fixture)
from two_ranks import EPOCHS, gradients, play

from benchmarks import ranks as benchmark
from plumbing import files, ranks, runs
from plumbing.story import ROOT

CPU = torch.device("cpu")
pytestmark = posix


def torchrun(folder, *command):
    """Start command on two ranks of one thread each in folder."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen([*start, *command], cwd=folder, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The folder in which two ranks have played, and what each has found."""
    folder = tmp_path_factory.mktemp("ranks")
    make_faces(folder / "faces", 120)
    status, said = end(torchrun(folder, ROOT / "tests" / "two_ranks.py"))
    assert status == 0, said
    return folder, [torch.load(folder / f"found{rank}.pt") for rank in (0, 1)]


def equal(one, two):
    return all(map(torch.equal, one, two)) and len(one) == len(two)


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_same_run(one, two):
    """The checkpoints in the folders one and two must be equal, seconds apart."""
    one, two = map(checkpoint, (one, two))
    for name in ("parts", "records", "samples", "distances", "fixed_z", "order", "random"):
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=0)


# --- Two ranks by themselves ------------------------------------------------------------------------------------------

def test_the_mean_of_two_gradients_is_that_of_all(played):
    both = [found["gradients"] for found in played[1]]
    for player, whole in enumerate(gradients(0, 16)):
        assert equal(both[0][player], both[1][player])
        for mean, wanted in zip(both[0][player], whole, strict=True):
            assert (mean - wanted).abs().max() < 1e-5 * max(1, wanted.abs().max())
    half = gradients(0, 8)[0]
    assert not any(torch.allclose(a, b, atol=1e-5) for a, b in zip(half, both[0][0], strict=True))


def test_both_ranks_hold_the_same_weights(played):
    folder, (first, second) = played
    assert EPOCHS * 7 >= 50 and equal(first["whole"], second["whole"])
    kept = checkpoint(folder / "whole")
    assert len(kept["records"]) == EPOCHS * 13 and len(kept["samples"]) == EPOCHS
    assert not torch.equal(kept["random"][0]["cpu"], kept["random"][1]["cpu"])
    assert kept["parts"]["d_optimizer"]["state"][0]["step"] == EPOCHS * 7
    assert not torch.equal(first["z"], second["z"])
    alone = set_up(folder / "faces", Path("alone"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a rank has: two round otherwise
    play(alone, 1)
    torch.set_num_threads(threads)
    assert alone.state.records[0][1:] == kept["records"][0][1:]  # rank 0 has drawn what one rank draws, rank 1 has not
    assert alone.state.records[1][1:] != kept["records"][1][1:]


def test_an_interrupt_of_one_stops_both_and_a_resume_is_bit_for_bit(played):
    folder, (first, second) = played
    assert first["played"] == second["played"] == 13 + 3 * 2
    assert equal(first["parts"], first["whole"]) and equal(second["parts"], second["whole"])
    assert_same_run(folder / "parts", folder / "whole")


def test_one_rank_goes_on_from_two_and_says_so(played, capsys):
    folder, _ = played
    shutil.copytree(folder / "whole", "whole")
    one = set_up(folder / "faces", Path("whole"), resume=True, n_epochs=EPOCHS + 1)
    assert ("whole/checkpoint.pt is of 2 ranks; going on with 1 will not be bit for bit the same run.\n"
            in capsys.readouterr().out)
    play(one, EPOCHS + 1)
    assert len(one.state.records) == (EPOCHS + 1) * 13 and len(one.state.samples) == EPOCHS + 1
    assert len(checkpoint(Path("whole"))["random"]) == 1


def test_what_ranks_tell_each_other(played):
    folder, both = played
    for rank, found in enumerate(both):
        assert found["first"] == 5 and found["gathered"] == [[0], [1]] and found["anywhere"] == [True, False]
        assert found["shares"] == [list(("ace", "bde")[rank]), list(("bd", "ce")[rank])]
        assert found["other"] == (f"seed is {rank} on rank {rank} and {1 - rank} on rank {1 - rank}; all ranks need "
                                  "the same command and the same files.")
        assert found["not finite"].startswith("The losses are no longer finite at step 2 ")
    assert (folder / "left.txt").read_text() == "rank 0"


# --- One process, with torch.distributed faked ------------------------------------------------------------------------

@pytest.fixture
def torchrun_says(monkeypatch):
    """torchrun's variables for rank 1 of 2 on a host with two cards; the list gets what is asked of torch."""
    asked = []
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    card = SimpleNamespace(device_count=lambda: 2, set_device=asked.append)
    monkeypatch.setattr(torch, "get_device_module", lambda device: card)
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda backend, timeout: asked.append(backend))
    for name, value in {"get_rank": 1, "get_world_size": 2}.items():
        monkeypatch.setattr(ranks.dist, name, lambda value=value: value)
    for name in ("rank", "count"):
        monkeypatch.setattr(ranks, name, getattr(ranks, name))
    return asked


@pytest.mark.parametrize("kind, backend", [("cuda", "cpu:gloo,cuda:nccl"), ("xpu", "cpu:gloo,xpu:xccl")])
def test_each_rank_takes_its_own_card(torchrun_says, kind, backend):
    own = torch.device(kind, 1)
    assert ranks.join(torch.device(kind, 0)) == own and torchrun_says == [own, backend]
    assert (ranks.rank, ranks.count) == (1, 2)


def test_on_the_cpu_it_is_gloo(torchrun_says):
    assert ranks.join(CPU) == CPU and torchrun_says == ["cpu:gloo"]
    assert runs.device_name(CPU).endswith(" threads, 2 ranks")


def test_ranks_that_cannot_work(torchrun_says, monkeypatch):
    refused(lambda: ranks.join(torch.device("mps")), "Several ranks work on cuda, xpu or cpu, and device is mps; set")
    monkeypatch.setenv("LOCAL_RANK", "2")
    refused(lambda: ranks.join(torch.device("cuda", 0)), "This host has 2 devices for its ranks; lower --nproc")
    assert torchrun_says == [] and (ranks.rank, ranks.count) == (0, 1)


@pytest.mark.parametrize("variables", [{}, {"RANK": "0", "WORLD_SIZE": "1"}, {"WORLD_SIZE": "8"}], ids=str)
def test_alone_nothing_is_joined(variables, monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ranks.join(torch.device("cuda", 0)) == torch.device("cuda", 0) and (ranks.rank, ranks.count) == (0, 1)
    assert ranks.first(max, 2, 3) == 3 and ranks.gather(5) == [5] and ranks.anywhere(True) and not ranks.anywhere(False)
    assert list(ranks.share("abcd", 1, Event())) == ["b", "c", "d"] and ranks.leave() is None


def test_rank_0_alone_writes(monkeypatch):
    monkeypatch.setattr(ranks, "rank", 1)
    files.write("face.png", b"face")
    with files.whole_file("checkpoint.pt") as file:
        torch.save({"D": torch.ones(3)}, file)
    with pytest.raises(SystemExit) as ended:
        ranks.leave()
    assert os.listdir() == [] and not ended.value.args  # papermill takes that for a success


# --- Two ranks with papermill -----------------------------------------------------------------------------------------

def notebook_on_two(project, **parameters):
    """The command of recipes/README.md on the copy of the notebook: an own notebook for each rank's outputs."""
    command = f"{sys.executable} -m papermill face_generation.ipynb runs/rank$RANK.ipynb --no-progress-bar"
    for name, value in (TINY | parameters).items():
        command += f" -p {name} {value}"
    (project / "runs").mkdir(exist_ok=True)
    return torchrun(project, "--no-python", "bash", "-c", command)


def kernels(process):
    """{rank: its kernel} of torchrun's children."""
    found = [p for p in psutil.Process(process.pid).children(recursive=True) if "ipykernel" in str(p.cmdline())]
    return {p.environ()["RANK"]: p for p in found}


def test_a_killed_rank_ends_the_others_and_the_run_goes_on(project, monkeypatch):  # noqa: F811
    process, folder = notebook_on_two(project, n_epochs=1000, resume=True), project / "runs" / "latest"
    while not (folder / "checkpoint.pt").exists():
        assert process.poll() is None, end(process)
        time.sleep(0.05)
    both = kernels(process)
    both["1"].kill()
    killed = time.monotonic()
    status, said = end(process)
    assert status != 0
    psutil.wait_procs(both.values(), timeout=60)
    assert time.monotonic() - killed < 60 and not any(p.is_running() for p in both.values())
    assert not (folder / "metrics.json").exists()
    done = len(checkpoint(folder)["samples"])
    assert done >= 1 and len(checkpoint(folder)["records"]) == 5 * done

    monkeypatch.setattr(benchmark, "PARAMETERS", TINY | {"n_epochs": done + 1})
    metrics = benchmark.play(2, 1, TINY["batch_size"], folder, project / "faces")
    assert metrics == json.loads((folder / "metrics.json").read_text())
    assert sorted(path.parent.name for path in project.rglob("metrics.json")) == ["assets", "latest"]
    assert metrics["steps"] == 5 * (done + 1) and metrics["device_name"].endswith(", 1 threads, 2 ranks")
    monkeypatch.setattr(benchmark.subprocess, "run", None)
    assert benchmark.play(2, 1, 8, folder, project / "faces") == metrics  # it is not played again


def test_the_benchmark_plays_the_same_images(monkeypatch, capsys):
    def play(count, threads, batch_size, folder, dataset):
        played.append((count, threads, batch_size, folder.name))
        return {"steps": 64 // batch_size, "train_seconds": 8.4, "images_per_second": 123.4, "measures": {"swd": 19.96},
                "device_name": "A processor, 2 threads", "precision": "fp32", "versions": {"torch": "2.7"}}

    played = []
    monkeypatch.setattr(benchmark, "play", play)
    monkeypatch.setattr(benchmark, "PARAMETERS", {})
    monkeypatch.setattr(sys, "argv", ["ranks", "--epochs", "3"])
    benchmark.main()
    assert benchmark.PARAMETERS == {"n_epochs": 3}
    assert played == [(1, 2, 16, "1x2x16"), (2, 1, 8, "2x1x8"), (2, 1, 16, "2x1x16")]
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| 1, 2 | 1 x 16 | 64 | 8 s | 123 | 20.0 |", "| 2, 1 | 2 x 8 | 64 | 8 s | 123 | 20.0 |",
        "| 2, 1 | 2 x 16 | 64 | 8 s | 123 | 20.0 |", "", "A processor, fp32, torch 2.7"]
