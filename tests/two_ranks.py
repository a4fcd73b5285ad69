"""What test_ranks.py judges: two ranks play on the folder faces, started by torchrun, and each leaves what it found."""
import os
import signal
import sys
from pathlib import Path
from threading import Event

import torch
from conftest import set_up

import helpers
from plumbing import ranks, runs
from plumbing.story import definitions

EPOCHS = 8  # of 13 batches: 7 steps on two ranks


def gradients(start, stop):
    """The gradients of both players on images start to stop of 16, batch normalisation in eval: two lists."""
    module = definitions(augment="", instance_noise=0.0)
    torch.manual_seed(0)
    D, G = (network.eval().to(memory_format=torch.channels_last)
            for network in (module.Discriminator(8), module.Generator(10, 8)))
    images, z = torch.rand(16, 3, 32, 32) * 2 - 1, torch.rand(16, 10) * 2 - 1
    optimizers = [torch.optim.Adam(network.parameters(), 1e-3) for network in (D, G)]
    ranks.unite([D, G, *optimizers], {})
    fakes, found = G(z[start:stop]), []
    for step in (lambda: module.discriminator_step(D, optimizers[0], images[start:stop], fakes),
                 lambda: module.generator_step(D, G, optimizers[1], fakes)):
        step()
        found.append([p.grad.clone() for p in (D, G)[len(found)].parameters()])
    return found


def play(module, n_epochs=EPOCHS):
    module.train(module.state, module.celeba_train_loader, n_epochs)
    return [value for network in (module.D, module.G) for value in network.parameters()]


def interrupted(run):
    """Play in the folder run until an interrupt that only rank 1 gets, in the third step of the second epoch."""
    module = set_up(Path("faces"), run)
    step, left = module.generator_step, [10]

    def interrupting_step(*arguments):
        left[0] -= 1
        if left[0] == 0 and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    module.generator_step = interrupting_step
    play(module)
    return len(module.state.records)


def refusal(call, *arguments):
    """The sentence that call(*arguments) is refused with."""
    try:
        return f"not refused: {call(*arguments)}"
    except (ValueError, FloatingPointError) as error:
        return str(error)


def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    helpers.show_faces = helpers.show_live = lambda *_, **__: None
    ranks.join(torch.device("cpu"))
    mine = ranks.rank
    losses = torch.tensor([float("nan") if mine else 1.0] * 4)
    found = {
        "gradients": gradients(8 * mine, 8 * mine + 8),
        "whole": play(set_up(Path("faces"), Path("whole"))),
        "played": interrupted(Path("parts")),
        "parts": play(set_up(Path("faces"), Path("parts"), resume=True)),
        "first": ranks.first(lambda: mine + 5), "gathered": ranks.gather([mine]), "z": torch.rand(3),
        "anywhere": [ranks.anywhere(mine == 1), ranks.anywhere(mine == 2)],
        "shares": [list(ranks.share("abcde", start, Event())) for start in (0, 1)],
        "other": refusal(ranks.unite, [], {"batch_size": 8, "seed": mine}),
        "not finite": refusal(runs.collect, [losses], [], "checkpoint.pt"),
    }
    torch.save(found, f"found{mine}.pt")
    ranks.leave()
    Path("left.txt").write_text(f"rank {mine}")


if __name__ == "__main__":
    sys.exit(main())
