"""Training killed 50 times at random moments: it goes on each time, and ends as if it had never been killed."""
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import torch
from conftest import make_faces, posix, set_up

import helpers
from plumbing import runs

KILLS = 50


def train(faces, run, n_epochs):
    """Train in the folder run, from its checkpoint if it has one. The networks are large enough for a file of 5 MB."""
    torch.set_num_threads(1)
    helpers.show_faces = helpers.show_live = lambda *_, **__: None  # drawing would take most of the time
    resume = (run / "checkpoint.pt").exists()
    module = set_up(faces, runs.start_run(run, resume), resume=resume, n_epochs=n_epochs,
                    d_conv_dim=16, g_conv_dim=16)
    module.train(module.state, module.celeba_train_loader, n_epochs)


def serve():
    """For each line "folder epochs" on standard input a forked child that trains: importing torch takes long."""
    faces = Path(sys.argv[1])
    print("ready", flush=True)
    for line in sys.stdin:
        run, n_epochs = line.split()
        child = os.fork()
        if child == 0:
            sys.stdout = sys.stderr = open(os.devnull, "w")
            try:
                train(faces, Path(run), int(n_epochs))
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def epochs_of(run):
    """Epochs in the checkpoint of run, which must be whole; 0 if there is none yet."""
    if not (run / "checkpoint.pt").exists():
        return 0
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert len(state["records"]) == 5 * len(state["samples"])
    return len(state["samples"])


@posix
def test_killed_fifty_times(tmp_path):
    make_faces(tmp_path / "faces")
    server = subprocess.Popen([sys.executable, __file__, tmp_path / "faces"], text=True, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})

    def start(run, n_epochs):
        print(run, n_epochs, file=server.stdin, flush=True)
        return int(server.stdout.readline())

    def end():
        return int(server.stdout.readline())

    assert server.stdout.readline() == "ready\n"
    began = time.perf_counter()
    start(tmp_path / "paced", 3)
    assert end() == 0
    pace = time.perf_counter() - began  # so that some kills come before an epoch's end and some after it on any machine

    moments, run, done, in_writing = random.Random(0), tmp_path / "killed", 0, 0
    for _ in range(KILLS):
        child = start(run, 10**6)
        time.sleep(moments.uniform(0, pace))
        os.kill(child, signal.SIGKILL)
        assert end() == -signal.SIGKILL
        before, done = done, epochs_of(run)
        assert done >= before
        in_writing += any(run.glob("*.partial"))
    print(f"{KILLS} kills, {in_writing} of them while the checkpoint was written; {done} epochs done")
    assert done > 0

    for folder in (run, tmp_path / "whole"):
        start(folder, done + 1)
        assert end() == 0
    server.stdin.close()
    assert server.wait() == 0
    killed, whole = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (run, tmp_path / "whole"))
    assert killed["records"] == whole["records"] and len(whole["samples"]) == done + 1
    assert all(map(torch.equal, killed["samples"], whole["samples"]))
    for network in ("D", "G", "G_average"):
        for name, value in whole["parts"][network].items():
            assert torch.equal(killed["parts"][network][name], value), (network, name)
    assert sorted(file.name for file in run.iterdir()) == ["checkpoint.pt"]


if __name__ == "__main__":
    serve()
