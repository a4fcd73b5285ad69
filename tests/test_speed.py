"""plumbing/speed.py: what it makes faster stays the same; its speed itself is measured by benchmarks/throughput.py."""
import copy
import os
import platform
from unittest import mock

import pytest
import torch
from conftest import child

from plumbing import speed
from plumbing.story import definitions

CPU = torch.device("cpu")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept():
    import resource

    def page_faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            tensors = [torch.ones(2**21) for _ in range(3)]  # 8 MiB each, 2,048 pages of 4 KiB
            del tensors
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def compare():
        torch.set_num_threads(1)  # the parent's threads were not forked
        by_default = page_faults()
        speed.keep_freed_memory()
        page_faults()
        assert page_faults() < by_default / 10

    process = child(compare)
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("shares, threads, free", [
    ([100, 5, 0, 0], 2, 1), ([60, 70, 0, 0], 2, 1), ([100, 100, 0, 0], 2, 0), ([100, 100, 0, 0], 1, None), ([20, 20, 100, 100], 2, None),
    ([100, 0, 0, 0], 1, None), ([], 2, None)])
def test_a_crowd_is_spoken_of(monkeypatch, capsys, shares, threads, free):
    """This process may use the first two of four cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(speed.psutil, "cpu_percent", lambda interval, percpu: shares)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    speed.warn_if_crowded(CPU)
    said = capsys.readouterr().out
    sentence = f"{threads} threads are asked for and {free} of 2 cores are free: "
    assert said == "" if free is None else said.startswith(sentence) and said.endswith("OMP_NUM_THREADS=1.\n")
    speed.warn_if_crowded(torch.device("cuda"))
    assert capsys.readouterr().out == ""


def test_another_c_library_is_left_alone(monkeypatch):
    library = mock.Mock()
    missing = [mock.Mock(side_effect=error) for error in (OSError, TypeError)]
    for found in (*missing, lambda _: object(), lambda _: library):
        monkeypatch.setattr(speed.ctypes, "CDLL", found)
        speed.keep_freed_memory()
    assert library.mallopt.call_count == 2


@pytest.mark.parametrize("flag, gain, precision, why", [
    ("amx_bf16", 2, "bf16", "the processor's amx_bf16 is 2.0 times as fast as fp32"),
    ("avx512_bf16", 0.6, "fp32", "the processor's avx512_bf16 is 0.6 times as fast as fp32"),
    ("avx2", 2, "fp32", "the processor has no native bf16")])
def test_bf16_on_a_processor_must_be_faster(monkeypatch, flag, gain, precision, why):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {flag: True}, raising=False)
    monkeypatch.setattr(speed, "speed_up", lambda device: gain)
    assert speed.choose_precision("auto", CPU) == (precision, why)


def test_other_precisions(monkeypatch):
    assert speed.choose_precision("bf16", CPU) == ("bf16", "as asked")
    assert speed.choose_precision("auto", torch.device("mps")) == ("fp32", "bf16 on mps is untried")
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # an older PyTorch
    assert speed.choose_precision("auto", CPU) == ("fp32", "the processor has no native bf16")


def test_speed_up_is_of_the_best_times_after_the_first(monkeypatch):
    seconds = [1, 9, 4, 3, 6, 2, 6, 6, 6, 6, 6, 6]  # fp32 and bf16 in turn
    clock = (sum(seconds[:end]) for start in range(12) for end in (start, start + 1))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    assert speed.speed_up(CPU) == 4 / 2


@pytest.mark.parametrize("image_size", [32, 64])
def test_networks_of_products_compute_the_same(image_size, monkeypatch):
    for name in ("small_conv", "small_deconv"):
        monkeypatch.setattr(speed, name, mock.Mock(side_effect=getattr(speed, name)))
    module = definitions()
    D, G = module.Discriminator(4, image_size), module.Generator(10, 4, image_size)
    z, results = torch.randn(5, 10), []
    for change in (lambda network: network, lambda network: copy.deepcopy(speed.small_as_products(network))):
        assert not speed.small_conv.called and not speed.small_deconv.called
        d, g = (change(network).to(memory_format=torch.channels_last) for network in (D, G))
        images = g(z)
        out = d(images)
        results.append([images, out, *torch.autograd.grad(out.sum(), [*d.parameters(), *g.parameters()])])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * a.abs().max().item())
    assert speed.small_conv.call_count == speed.small_deconv.call_count == 1  # one layer of each network


def test_a_copy_of_products_has_weights_of_its_own():
    layer = speed.small_as_products(torch.nn.Conv2d(3, 2, 4, 2, 1, bias=False))
    twin, x = copy.deepcopy(layer), torch.ones(1, 3, 4, 4)
    torch.nn.init.zeros_(twin.weight)
    assert twin(x).abs().max() == 0 < layer(x).abs().max()


@pytest.mark.parametrize("layer", [
    torch.nn.Conv2d(4, 2, 4, 2, 1), torch.nn.Conv2d(4, 2, 3, 1, 1, bias=False),
    torch.nn.Conv2d(4, 2, 4, 2, 1, groups=2, bias=False), torch.nn.ConvTranspose2d(4, 2, 4, 2, 1),
    torch.nn.Linear(4, 2, bias=False)], ids=["bias", "kernel of 3", "groups", "transposed with bias", "linear"])
def test_other_layers_stay_as_they_are(layer):
    assert "forward" not in vars(speed.small_as_products(layer))


@pytest.mark.parametrize("kind", [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
def test_other_sizes_stay_convolutions(kind):
    layer, x = kind(3, 2, 4, 2, 1, bias=False), torch.rand(2, 3, 6, 8)
    before = layer(x)
    assert torch.equal(speed.small_as_products(layer)(x), before)


def test_steps_in_memory_order_are_the_same():
    """Bit for bit; Adam that is not fused, which rounds otherwise, gives the bound. A run goes on from either state."""
    def steps(count, network, optimizer):
        for step in range(count):
            optimizer.zero_grad()
            network(torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(step))).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    first = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 4, 2, 1, bias=False), torch.nn.Conv2d(5, 7, 4, 2, 1)).to(
        memory_format=torch.channels_last)
    ended = []
    for prepare, fused in ((lambda _: None, False), (lambda _: None, True), (speed.in_memory_order, True)):
        network = copy.deepcopy(first)
        optimizer = torch.optim.Adam(network.parameters(), 0.01, fused=fused)
        prepare(optimizer)
        steps(3, network, optimizer)
        ended.append((network, optimizer))
    (reference, _), (fused, one), (turned, other) = ended
    for a, b, c in zip(reference.parameters(), fused.parameters(), turned.parameters()):
        assert torch.allclose(a, b, atol=1e-6) and torch.equal(b, c) and c.shape == b.shape == c.grad.shape
        assert c.stride() == b.stride()
        for name, value in one.state[b].items():
            assert torch.equal(value, other.state[c][name])
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    steps(2, fused, one)
    steps(2, turned, other)
    assert all(map(torch.equal, fused.parameters(), turned.parameters()))


def test_sampling_costs_no_more_than_a_forward_pass_of_training():
    """Counted, not timed: no matrix product without gradients has three dimensions, for which bf16 has a slow way."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            called.append((function.overloadpacket.__name__, [tuple(x.shape) for x in arguments if torch.is_tensor(x)]))
            return function(*arguments, **(options or {}))

    G, costs = speed.small_as_products(definitions().Generator(10, 4)).to(memory_format=torch.channels_last), []
    for gradients in (True, False):
        called = []
        with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16), Calls():
            G(torch.rand(8, 10))
        costs.append([call for call in called if call[0] in ("mm", "addmm", "bmm", "matmul", "convolution")])
    assert costs[0] == costs[1] and {"mm", "addmm", "convolution"} == {name for name, _ in costs[0]}
