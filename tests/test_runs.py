"""plumbing/runs.py: a run's device, folder, state and bookkeeping."""
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import DEFAULTS, at_home, child, pixels, posix, refused
from rows_runs import NOT_CHECKPOINTS, PARTS

from plumbing import runs

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


# --- Devices ----------------------------------------------------------------------------------------------------------

def test_auto_takes_the_accelerator(monkeypatch):
    for there, taken in ((False, "cpu"), (True, "meta")):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: there)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
        assert runs.choose_device() == runs.choose_device("auto") == torch.device(taken)
    assert runs.choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda:99", "xpu:99", "auto:1", "tpu"])
def test_a_device_that_is_not_here(name):
    refused(lambda: runs.choose_device(name), f"device is '{name}', and PyTorch does not find it here; use \"auto\" or")


def test_names_for_the_metrics(monkeypatch):
    assert runs.versions()["torch"] == torch.__version__
    assert runs.device_name(CPU).endswith("threads")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    assert runs.device_name(CUDA) == "a card"
    monkeypatch.setattr("builtins.open", mock.Mock(side_effect=OSError))
    assert runs.device_name(CPU).endswith("threads")


# --- The folder of a run ----------------------------------------------------------------------------------------------

@posix
def test_a_second_process_is_refused():
    def start_and_stay():
        runs.start_run("runs/a", False)
        Path("started").touch()
        time.sleep(600)

    process = child(start_and_stay)
    try:
        while not Path("started").exists():
            assert process.is_alive()
            time.sleep(0.01)
        refused(lambda: runs.start_run("runs/a", False), "Another run is writing to runs/a; wait for its end or choose")
    finally:
        process.kill()
        process.join()
    for _ in range(2):
        assert runs.start_run("runs/a", False) == Path("runs/a")  # free again, and mine for good


def test_an_earlier_run_is_moved_aside(capsys):
    for number in range(3):
        run = runs.start_run("runs/b", False)
        assert run == Path("runs/b") and os.listdir(run) == []
        (run / "checkpoint.pt").write_bytes(bytes([number]))
    assert [Path(f"runs/b{aside}/checkpoint.pt").read_bytes()[0] for aside in ("-1", "-2", "")] == [0, 1, 2]
    assert capsys.readouterr().out.splitlines()[-1] == f"The run that was in {Path('runs/b')} is now in {Path('runs/b-2')}."


def test_a_resume_with_nothing_there_starts_and_says_so(capsys):
    run = runs.start_run("runs/c", True)
    assert capsys.readouterr().out == f"There is no checkpoint in {Path('runs/c')} to go on from: the run starts.\n"
    (run / "checkpoint.pt").write_bytes(b"1")
    assert runs.start_run("runs/c", True) == run and capsys.readouterr().out == ""
    assert (run / "checkpoint.pt").read_bytes() == b"1" and sorted(os.listdir("runs")) == [".c.lock", "c"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_is_tidied(resume):
    """What a resume finds stays until it has been accepted: it may yet be refused."""
    run = runs.start_run("run", False)
    names = ["a_face.png", "checkpoint.pt.partial"] + ["checkpoint.pt", "metrics.json"] * resume
    for name in names:
        (run / name).touch()
    runs.start_run("run", resume)
    assert sorted(os.listdir(run)) == ["a_face.png"] + ["checkpoint.pt", "metrics.json"] * resume


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_without_its_checkpoint_is_moved_aside(resume):
    (runs.start_run("run", False) / "metrics.json").write_text("finished")
    assert os.listdir(runs.start_run("run", resume)) == [] and Path("run-1/metrics.json").read_text() == "finished"


def test_a_link_has_the_lock_of_its_folder():
    Path("real").mkdir()
    Path("link").symlink_to("real")
    assert runs.start_run("link", False) == Path("real").resolve() and Path(".real.lock").exists()
    (Path("real") / "checkpoint.pt").touch()
    assert os.listdir(runs.start_run("link", False)) == [] and os.listdir("real-1") == ["checkpoint.pt"]
    assert Path("link").resolve() == Path("real").resolve() and not Path(".link.lock").exists()


def test_a_folder_in_ones_home(monkeypatch, tmp_path):
    at_home(monkeypatch, tmp_path)
    assert runs.start_run("~/run", False) == tmp_path / "run"


def test_a_folder_that_cannot_be_made():
    Path("file").touch()
    for name in ("file/run", ".", "~nobody-of-this-name/\0"):
        refused(lambda: runs.start_run(name, False), f"output_dir {name!r} cannot be used (")


# --- Interrupts and random numbers ------------------------------------------------------------------------------------

@pytest.fixture
def usual():
    """Python's own answer to an interrupt, set here, because a background shell starts programs that ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_the_second_interrupt_is_as_usual(usual):
    with pytest.raises(KeyboardInterrupt), runs.interruptible() as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is usual


def test_other_threads_are_not_interrupted(usual):
    seen = []

    def elsewhere():
        with runs.interruptible() as stop:
            seen.append((stop.is_set(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(False, usual)]


def test_random_numbers_come_again(monkeypatch):
    other = torch.Generator()
    card = mock.Mock(get_rng_state=lambda device: other.get_state(),
                     set_rng_state=lambda state, device: other.set_state(state))
    monkeypatch.setattr(torch, "get_device_module", lambda device: card)
    for device in (CPU, CUDA):
        state = runs.random_state(device)
        first = torch.rand(5), torch.rand(5, generator=other)
        runs.set_random_state(state, device)
        assert torch.equal(torch.rand(5), first[0])
        assert torch.equal(torch.rand(5, generator=other), first[1]) == (device == CUDA)
    runs.set_random_state(runs.random_state(CPU), CUDA)  # of a run that was on another device


# --- Checkpoints ------------------------------------------------------------------------------------------------------

def state_after_a_step(seed, **more):
    torch.manual_seed(seed)
    D = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(D.parameters())
    D(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    return runs.State({"D": D, "d_optimizer": optimizer}, **{
        "parameters": DEFAULTS, "data": "7 faces", "fixed_z": torch.rand(2), "order": torch.get_rng_state(),
        "random": runs.random_state(CPU)} | more)


def assert_same(one, two):
    """one and two must go on alike, bit for bit."""
    kinds = ("fixed_z", "order", "random", "records", "samples", "seconds")
    kept = [[part.state_dict() for part in state.parts.values()] + [getattr(state, kind) for kind in kinds]
            for state in (one, two)]
    torch.testing.assert_close(*kept, rtol=0, atol=0)


def test_a_checkpoint_comes_back():
    first = state_after_a_step(0, records=[[1.0]], samples=[pixels(2, 4, 4, 3)], seconds=[0.5])
    Path("metrics.json").write_text("of the run as it was before it went on")
    runs.save_checkpoint("checkpoint.pt", first)
    assert not Path("metrics.json").exists()
    may_change = {"device": "cuda", "n_epochs": 99, "dataset": "elsewhere", "fid": True}
    second = state_after_a_step(1, parameters=DEFAULTS | may_change)
    runs.load_checkpoint("checkpoint.pt", second)
    assert_same(first, second)
    kept, older = torch.load("checkpoint.pt", weights_only=True), state_after_a_step(1)
    torch.save(kept | {"random": kept["random"][0]}, "older.pt")  # written before there were ranks
    runs.load_checkpoint("older.pt", older)
    assert_same(first, older)
    assert second.parameters == DEFAULTS | may_change and second.samples[0].dtype == np.uint8


def refuse(*parts, **change):
    """The file checkpoint.pt must be refused, and the state stay as it was; returns the sentence."""
    state, before = (state_after_a_step(1, **change) for _ in range(2))
    sentence = refused(lambda: runs.load_checkpoint("checkpoint.pt", state), "checkpoint.pt", *parts)
    assert_same(state, before)
    return sentence


def test_other_settings_and_other_faces_are_refused():
    runs.save_checkpoint("checkpoint.pt", state_after_a_step(0))
    assert refuse(parameters=DEFAULTS | {"z_size": 64, "seed": 1}, data="8 faces") == (
        "checkpoint.pt was made with other settings: z_size was 100 and is 64; seed was 0 and is 1; data was '7 faces' "
        "and is '8 faces'. Set them back, or start without it (resume false, start_from \"\").")


def test_fewer_epochs_than_there_are_are_refused():
    runs.save_checkpoint("checkpoint.pt", state_after_a_step(0, samples=2 * [pixels(2, 4, 4, 3)]))
    assert refuse(parameters=DEFAULTS | {"n_epochs": 1}) == (
        "checkpoint.pt holds 2 epochs and n_epochs is 1; set it to 2 or more, or start without it (resume false, "
        "start_from \"\").")
    runs.load_checkpoint("checkpoint.pt", state_after_a_step(1, parameters=DEFAULTS | {"n_epochs": 2}))


@pytest.mark.parametrize("content", NOT_CHECKPOINTS.values(), ids=NOT_CHECKPOINTS.keys())
def test_files_that_are_not_checkpoints(content):
    Path("checkpoint.pt").write_bytes(content)
    refuse("is not a checkpoint of this notebook, or is damaged; move it away and start without it")
    assert os.listdir() == ["checkpoint.pt"]


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
def test_checkpoints_of_other_parts(parts):
    other = state_after_a_step(0)
    other.parts = parts
    runs.save_checkpoint("checkpoint.pt", other)
    refuse("does not hold the state of these networks and optimizers; move it away and start without it")


def test_a_checkpoint_that_is_gone():
    assert refuse() == "checkpoint.pt does not exist; start without it (resume false, start_from \"\")."


def test_networks_of_another_run(monkeypatch, tmp_path):
    at_home(monkeypatch, tmp_path)
    first, D = state_after_a_step(0), torch.nn.Linear(3, 2)
    Path("run").mkdir()
    runs.save_checkpoint("run/checkpoint.pt", first)
    refused(lambda: runs.load_networks("~/run", {"D": D}, DEFAULTS | {"z_size": 64, "seed": 1}),
            "run/checkpoint.pt was made with other settings: z_size was 100 and is 64. Set them back")
    assert not torch.equal(D.weight, first.parts["D"].weight)
    runs.load_networks("run", {"D": D}, DEFAULTS | {"seed": 1})
    assert torch.equal(D.weight, first.parts["D"].weight)


def test_take_up_prefers_the_runs_own_checkpoint(monkeypatch):
    taken, parts = [], dict.fromkeys(("D", "G", "G_average", "d_optimizer"), "a part")
    monkeypatch.setattr(runs, "load_checkpoint", lambda path, state: taken.append(path))
    monkeypatch.setattr(runs, "load_networks", lambda folder, parts, parameters: taken.append((folder, list(parts))))
    state, other = SimpleNamespace(parts=parts, parameters={}), ("other", ["D", "G", "G_average"])
    for there in (False, True):
        for resume, start_from in ((False, ""), (True, ""), (False, "other"), (True, "other")):
            runs.take_up("checkpoint.pt", state, resume, start_from)
        assert taken == (["checkpoint.pt", other, "checkpoint.pt"] if there else [other, other])
        taken.clear()
        Path("checkpoint.pt").touch()


def test_a_fingerprint_tells_faces_apart():
    training, held_out = pixels(1200, 4, 4, 3), pixels(3, 4, 4, 3)
    usual = runs.fingerprint(training, held_out)
    assert usual == runs.fingerprint(training.copy(), held_out.copy()) and usual.startswith("1200 faces")
    for other in ((training[::-1], held_out), (training[1:], held_out), (training, held_out[::-1])):
        assert runs.fingerprint(*other) != usual
    training[-1, 0, 0, 0] ^= 1
    assert runs.fingerprint(training, held_out) != usual
