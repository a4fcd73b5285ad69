"""The notebook's training loop: what an interrupt, a resume and a lost game do to it. Its own cells are executed."""
import copy
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_faces, set_up

from plumbing.story import definitions


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """46 images, 40 of them to train on: five steps an epoch."""
    folder = tmp_path_factory.mktemp("data") / "faces"
    make_faces(folder)
    return folder


def play(module, n_epochs=3):
    module.train(module.state, module.celeba_train_loader, n_epochs, print_every=2)


def interrupted_after(module, steps):
    """Let a real interrupt arrive during that step, counted from here."""
    step, left = module.generator_step, [steps]

    def interrupting_step(*arguments):
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    module.generator_step = interrupting_step


def use(module):
    """Draw random numbers, images and faces, as the cells below the loop do."""
    torch.manual_seed(1)
    next(iter(module.celeba_train_loader))
    module.generate(module.G_average, module.random_z(3))


@pytest.mark.parametrize("process", ["new", "same"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_interrupted_and_resumed_equals_uninterrupted(faces, tmp_path, precision, process):
    whole = set_up(faces, tmp_path / "whole", precision=precision)
    play(whole)
    assert len(whole.state.records) == 15 and len(whole.state.samples) == 3

    part, steps_done = None, 0
    for steps in (1, 3, 1, 4, 2, 100):  # in mid-epoch, on its last step, twice in one epoch, not at all
        if part is None or process == "new":
            part = set_up(faces, tmp_path / "part", precision=precision, resume=steps_done > 0)
        assert len(part.state.records) == steps_done
        interrupted_after(part, steps)
        play(part)
        steps_done = min(15, steps_done + steps)
        assert len(part.state.records) == steps_done
        use(part)
    assert part.state.records == whole.state.records
    assert all(map(np.array_equal, part.state.samples, whole.state.samples)) and len(part.state.samples) == 3
    for network in ("D", "G", "G_average"):
        for name, value in getattr(whole, network).state_dict().items():
            assert torch.equal(getattr(part, network).state_dict()[name], value), (network, name)


@pytest.mark.parametrize("epochs", [0, 1])
def test_interrupted_before_an_epochs_first_step(faces, tmp_path, epochs):
    module, starts = set_up(faces, tmp_path), iter([False, False] * epochs + [True])

    def interrupting_clock():
        if next(starts, False):
            signal.raise_signal(signal.SIGINT)
        return time.perf_counter()

    module.time = SimpleNamespace(perf_counter=interrupting_clock)
    play(module)
    assert len(module.state.records) == 5 * epochs and len(module.state.samples) == epochs
    on = set_up(faces, tmp_path, resume=True)
    play(on)
    assert len(on.state.records) == 15 and len(on.state.samples) == 3


def test_more_epochs_is_a_resume_and_other_parameters_are_not(faces, tmp_path):
    first = set_up(faces, tmp_path)
    play(first, 1)
    longer = set_up(faces, tmp_path, resume=True)
    play(longer, 2)
    assert len(longer.state.records) == 10 and longer.state.records[:5] == first.state.records
    with pytest.raises(ValueError, match="made with other settings: d_lr was 0.0004 and is 0.01"):
        set_up(faces, tmp_path, resume=True, d_lr=0.01)


def test_a_run_starts_from_the_networks_of_another(faces, tmp_path):
    first = set_up(faces, tmp_path / "first")
    play(first, 2)
    wanted = {name: copy.deepcopy(getattr(first, name).state_dict()) for name in ("D", "G", "G_average")}
    before = (tmp_path / "first" / "checkpoint.pt").read_bytes()
    settings = {"start_from": str(tmp_path / "first"), "batch_size": 16, "ema_decay": 0.75, "d_lr": 1e-5}
    second = set_up(faces, tmp_path / "second", **settings)
    for name, state in wanted.items():
        for key, value in getattr(second, name).state_dict().items():
            assert torch.equal(value, state[key]), (name, key)
    assert second.state.records == [] and not second.d_optimizer.state

    interrupted_after(second, 1)  # one step: the average keeps three quarters of what it was
    play(second, 1)
    for key, value in second.G_average.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, 0.75 * wanted["G_average"][key] + 0.25 * second.G.state_dict()[key], atol=1e-6)
    assert second.d_optimizer.param_groups[0]["lr"] == 1e-5

    again = set_up(faces, tmp_path / "second", resume=True, **settings)
    play(again, 1)
    whole = set_up(faces, tmp_path / "whole", **settings)
    play(whole, 1)
    assert again.state.records == whole.state.records and (tmp_path / "first" / "checkpoint.pt").read_bytes() == before
    with pytest.raises(ValueError, match="start_from was '.*first' and is ''"):
        set_up(faces, tmp_path / "second", resume=True, **settings | {"start_from": ""})
    with pytest.raises(ValueError, match="made with other settings: d_conv_dim was 4 and is 16"):
        set_up(faces, tmp_path / "third", **settings | {"d_conv_dim": 16})


@pytest.mark.parametrize("g_lr, won", [(1e-7, True), (2e-3, False)])
def test_a_game_that_D_wins_is_reported(faces, tmp_path, capsys, g_lr, won):
    module = set_up(faces, tmp_path, g_lr=g_lr, d_conv_dim=16, g_conv_dim=16, lr_decay=0)
    module.train(module.state, module.celeba_train_loader, 16)
    last = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")][-1]
    assert ("D has won" in last) == won


def test_losses_that_are_not_finite_stop_the_run(faces, tmp_path):
    module = set_up(faces, tmp_path)
    play(module, 1)
    good = (tmp_path / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        next(module.G.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"no longer finite at step 6 \(before: .*checkpoint.pt"):
        play(module, 2)
    assert (tmp_path / "checkpoint.pt").read_bytes() == good


def test_average_follows_its_equation():
    module = definitions(ema_decay=0.9)
    average, current = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)
    torch.nn.init.constant_(current.weight, 3.0)
    current.num_batches_tracked += 7
    module.move_average(average, current, step=1)
    assert torch.allclose(average.weight, torch.tensor(1 / 21 * 1.0 + 20 / 21 * 3.0))
    module.move_average(average, current, step=10**6)
    assert torch.allclose(average.weight, torch.tensor(0.9 * (1 / 21 + 60 / 21) + 0.1 * 3.0))
    assert average.num_batches_tracked == 7


def test_augmentation_mirrors_about_half():
    module = definitions(augment="flip", instance_noise=0.0)
    images = torch.rand(1000, 3, 4, 4)
    mirrored = (module.augmented(images) == images.flip(3)).flatten(1).all(dim=1)
    unchanged = (module.augmented(images) == images).flatten(1).all(dim=1)
    assert 400 < mirrored.sum() < 600 and 400 < unchanged.sum() < 600
    module.augment = ""
    assert torch.equal(module.augmented(images), images)


def test_augmentation_moves_about_half_by_up_to_an_eighth():
    module = definitions(augment="shift", instance_noise=0.0)
    torch.manual_seed(0)
    images = torch.rand(400, 3, 32, 32, requires_grad=True)
    moved = module.augmented(images)
    padded, unmoved, found = torch.nn.functional.pad(images, (4, 4, 4, 4)), 0, set()
    for image, result in zip(padded, moved, strict=True):
        at = [(y, x) for y in range(9) for x in range(9) if torch.equal(image[:, y:y + 32, x:x + 32], result)]
        assert len(at) == 1
        unmoved += at == [(4, 4)]
        found |= set(at)
    assert 160 < unmoved < 250 and {y for y, _ in found} == {x for _, x in found} == set(range(9))
    moved.sum().backward()
    assert set(images.grad.unique().tolist()) == {0.0, 1.0} and images.grad[:, :, 4:-4, 4:-4].min() == 1
    module.augment = "flip shift"
    assert 60 < sum(torch.equal(a, b) for a, b in zip(module.augmented(images), images, strict=True)) < 150


def test_instance_noise_has_its_deviation_and_lets_gradients_through():
    module = definitions(augment="", instance_noise=0.2)
    images = torch.zeros(64, 3, 32, 32, requires_grad=True)
    noisy = module.augmented(images)
    assert noisy.mean().item() == pytest.approx(0, abs=0.003) and noisy.std().item() == pytest.approx(0.2, rel=0.02)
    noisy.sum().backward()
    assert torch.equal(images.grad, torch.ones_like(images))
    for dtype in (torch.float32, torch.bfloat16):  # randn_like would do too, but draws in channels_last one by one
        layers = images.detach().to(dtype, memory_format=torch.channels_last)
        assert module.augmented(layers).is_contiguous(memory_format=torch.channels_last)


def test_learning_rates_fall_with_the_root_of_the_steps():
    module = definitions(lr_decay=100, d_lr=1e-3, g_lr=4e-3)
    optimizers = [torch.optim.Adam([torch.zeros(1, requires_grad=True)]) for _ in range(2)]
    for step, factor in ((1, 1), (100, 1), (400, 0.5), (10_000, 0.1)):
        module.slow_down(*optimizers, step)
        assert [o.param_groups[0]["lr"] for o in optimizers] == pytest.approx([1e-3 * factor, 4e-3 * factor])
    module.lr_decay = 0
    module.slow_down(*optimizers, 10_000)
    assert [o.param_groups[0]["lr"] for o in optimizers] == [1e-3, 4e-3]


def test_lookahead_goes_half_of_the_way_back():
    module, weights, at = definitions(lookahead=3), [torch.zeros(2, 2, requires_grad=True) for _ in range(2)], []
    optimizers = [torch.optim.Adam([weight]) for weight in weights]
    for step in range(1, 13):
        for weight, optimizer in zip(weights, optimizers, strict=True):
            optimizer.state[weight]["step"] = step
            weight.data += 2
        if step == 10:
            module.lookahead = 0
        module.look_ahead(*optimizers, step)
        assert all((weight == weight[0, 0]).all() and weight[0, 0] == weights[0][0, 0] for weight in weights)
        at.append(weights[0][0, 0].item())
    assert at == [2, 4, 6, 8, 10, 9, 11, 13, 12, 14, 16, 18]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_is_of_real_images_only(smoothing):
    module = definitions(augment="", instance_noise=0.0, label_smoothing=smoothing)
    D = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 1))
    real, fake = torch.rand(2, 8, 3, 32, 32) * 2 - 1
    a, b = D(real).detach(), D(fake).detach()
    wanted = (torch.nn.functional.softplus(-a) + smoothing * a).mean() + torch.nn.functional.softplus(b).mean()
    loss, *_ = module.discriminator_step(D, torch.optim.SGD(D.parameters(), 0.1), real, fake)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_batchnorm_hides_contrast_but_not_brightness():
    module = definitions()
    D = module.Discriminator(64).apply(module.weights_init_normal)
    images = torch.rand(16, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        as_they_are, half, brighter = D(images), D(images / 2), D(images + 0.3)
    assert (as_they_are - half).abs().max() < 0.02 < 0.1 < (as_they_are - brighter).abs().max()
