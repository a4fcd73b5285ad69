"""All that names a kind of device, with fakes of torch.cuda's answers: no line for GPUs is first run by a user."""
import contextlib
import warnings
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from test_rejection import definitions as cached

from plumbing import runs, speed
from plumbing.story import definitions

CPU, META = torch.device("cpu"), torch.device("meta")


# --- What torch.cuda would answer -------------------------------------------------------------------------------------

class Cards:
    """torch.cuda's answers if there were cards: (name, whether it computes in bf16, bytes that are free) of each."""

    def __init__(self, *cards):
        self.cards, self.current = cards, 0
        self.generators = [torch.Generator().manual_seed(number) for number in range(len(cards))]

    def index(self, device=None):
        index = self.current if device is None or torch.device(device).index is None else torch.device(device).index
        if index >= len(self.cards):
            raise RuntimeError("CUDA error: invalid device ordinal")
        return index

    def is_available(self):
        return bool(self.cards)

    @contextlib.contextmanager
    def device(self, device):
        self.current, before = self.index(device), self.current
        yield
        self.current = before

    def is_bf16_supported(self, including_emulation=True):
        return including_emulation or self.cards[self.current][1]

    def get_device_name(self, device=None):
        return self.cards[self.index(device)][0]

    def mem_get_info(self, device=None):
        return self.cards[self.index(device)][2], 10**12

    def get_rng_state(self, device=None):
        return self.generators[self.index(device)].get_state()

    def set_rng_state(self, state, device=None):
        self.generators[self.index(device)].set_state(state)

    def empty(self, size, device):
        """What torch.empty gives, as far as runs.choose_device looks at it."""
        return SimpleNamespace(device=torch.device("cuda", self.index(device)))


NEW, OLD = ("an A100", True, 8000), ("a T4", False, 1000)


@pytest.fixture
def cards(monkeypatch):
    def put_in(*some):
        machine = Cards(*some)
        for name in ("is_available", "device", "is_bf16_supported", "get_device_name", "mem_get_info", "get_rng_state",
                     "set_rng_state"):
            monkeypatch.setattr(torch.cuda, name, getattr(machine, name))
        monkeypatch.setattr(torch.accelerator, "is_available", machine.is_available)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
        if some:
            monkeypatch.setattr(torch, "empty", machine.empty)
        return machine
    return put_in


@pytest.mark.parametrize("some, name, found", [
    ([NEW], "auto", ("cuda:0", "bf16", "an A100")), ([OLD], "auto", ("cuda:0", "fp32", "a T4")),
    ([NEW, OLD], "cuda:1", ("cuda:1", "fp32", "a T4")), ([OLD, NEW], "cuda:1", ("cuda:1", "bf16", "an A100")),
    ([OLD, NEW], "cuda", ("cuda:0", "fp32", "a T4"))])
def test_a_card_is_found_and_asked_itself(cards, some, name, found):
    cards(*some)
    device = runs.choose_device(name)
    assert (str(device), speed.choose_precision("auto", device)[0], runs.device_name(device)) == found


def test_without_a_card_there_is_the_processor(cards):
    cards()
    assert runs.choose_device() == CPU
    assert speed.choose_precision("bf16", torch.device("cuda", 1)) == ("bf16", "as asked")
    assert speed.choose_precision("auto", torch.device("mps")) == ("fp32", "bf16 on mps is untried")


@pytest.mark.parametrize("kind, precision", [("cuda", "bf16"), ("cuda", "fp32"), ("mps", "fp32"), ("xpu", "fp32")])
def test_autocast_is_of_the_device(cards, kind, precision):
    cards(NEW)
    with warnings.catch_warnings(), definitions(device=torch.device(kind, 0), precision=precision).autocast():
        warnings.simplefilter("error")
        assert torch.is_autocast_enabled(kind) == (precision == "bf16") and not torch.is_autocast_enabled("cpu")
        assert precision == "fp32" or torch.get_autocast_dtype(kind) == torch.bfloat16


def test_random_numbers_are_those_of_the_card_that_is_used(cards):
    machine, device = cards(OLD, NEW), torch.device("cuda", 1)
    state = runs.random_state(device)
    first = [torch.rand(3, generator=generator) for generator in machine.generators]
    runs.set_random_state(state, device)
    again = [torch.rand(3, generator=generator) for generator in machine.generators]
    assert [torch.equal(a, b) for a, b in zip(first, again)] == [False, True]


def test_random_numbers_of_mps_which_has_no_number(monkeypatch):
    generator = torch.Generator()
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: generator.get_state())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: generator.set_state(state))
    state, first = runs.random_state(torch.device("mps", 0)), torch.rand(3, generator=generator)
    runs.set_random_state(state, torch.device("mps", 0))
    assert torch.equal(torch.rand(3, generator=generator), first)


# --- Images larger than the device's memory ---------------------------------------------------------------------------

@pytest.mark.parametrize("number, nbytes, stays", [(0, 4000, False), (0, 4001, True), (1, 501, True), (1, 500, False)])
def test_images_that_do_not_fit_stay_on_the_host(cards, capsys, number, nbytes, stays):
    cards(NEW, OLD)
    images, device = mock.Mock(nbytes=nbytes), torch.device("cuda", number)
    found = speed.on_device_if_it_fits(images, device)
    assert images.to.call_args_list == ([] if stays else [mock.call(device)])
    assert found is (images if stays else images.to.return_value)
    assert ("stay in the host's memory" in capsys.readouterr().out) is stays


def test_a_batch_is_pinned_on_its_way_to_a_gpu_only():
    cuda = torch.device("cuda", 0)
    for here, there, pinned in ((CPU, cuda, True), (cuda, cuda, False), (CPU, CPU, False), (CPU, META, False)):
        batch = mock.Mock(device=here)
        found = speed.moved(batch, there)
        way = batch.pin_memory.return_value if pinned else batch
        assert found is way.to.return_value and way.to.call_args == mock.call(there, non_blocking=True)
        assert batch.pin_memory.called is pinned


def test_each_batch_of_images_on_the_host_is_moved(monkeypatch):
    monkeypatch.setattr(speed, "on_device_if_it_fits", lambda images, device: images)
    module = cached.__wrapped__()  # a module of its own
    module.device = META
    loader, held_out = module.get_dataloader(16, 8)
    assert loader.dataset.device == held_out.dataset.device == CPU
    assert {(batch.device, batch.shape) for batch in loader} == {(META, (16, 3, 8, 8))}
