"""What makes training faster and changes no result beyond rounding."""
import contextlib
import ctypes
import itertools
import os
import time
import types

import psutil
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader


def keep_freed_memory():
    """Make glibc reuse freed memory; with another C library nothing happens.

    By default glibc returns freed megabytes to the system, which then has to fill the next tensor with zeros, page by
    page: an eighth of a step of 16 faces in bf16 on an AMD EPYC. The numbers are those of malloc.h, the sizes in bytes."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no mallopt, or no C library to ask
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 32 * 2**20)   # M_MMAP_THRESHOLD, at its largest
        mallopt(-1, 2**31 - 1)    # M_TRIM_THRESHOLD


def warn_if_crowded(device):
    """Print a line if other programs leave fewer cores free than torch has threads, which then wait for one another.

    It looks for a fifth of a second, in which this process sleeps. Load averages would tell of runs that have ended."""
    if device.type != "cpu":
        return
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    shares = psutil.cpu_percent(interval=0.2, percpu=True)
    taken = round(sum(shares[core] for core in cores if core < len(shares)) / 100)
    threads, free = torch.get_num_threads(), len(cores) - taken
    if threads > max(1, free):
        print(f"{threads} threads are asked for and {free} of {len(cores)} cores are free: threads that wait for one "
              f"another are slower than fewer threads; start each run with OMP_NUM_THREADS={max(1, free)}.")


def prepare(device):
    """What this process does once before it trains on device: warn_if_crowded and keep_freed_memory."""
    warn_if_crowded(device)
    keep_freed_memory()


def speed_up(device, dtype=torch.bfloat16):
    """How many times as fast as in fp32 a convolution like the networks' is in dtype: the best of five of each."""
    x, w = torch.ones(64, 128, 8, 8, device=device), torch.ones(256, 128, 4, 4, device=device)
    seconds = {torch.float32: [], dtype: []}
    for _ in range(6):
        for kind, taken in seconds.items():
            a, b = (t.to(kind, memory_format=torch.channels_last) for t in (x, w))
            start = time.perf_counter()
            F.conv2d(a, b, stride=2, padding=1)
            taken.append(time.perf_counter() - start)
    return min(seconds[torch.float32][1:]) / min(seconds[dtype][1:])


def choose_precision(name, device):
    """("bf16" or "fp32", why): what autocast computes in. "auto" takes bf16 only if it is faster here.

    A processor may list bf16 among its instructions and be slower with it, so a convolution is timed."""
    if name != "auto":
        return name, "as asked"
    if device.type == "cuda":
        with torch.cuda.device(device):  # the question is about the current one
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "the GPU computes in it") if native else ("fp32", "the GPU has no native bf16")
    if device.type == "cpu":
        can = getattr(torch.cpu, "get_capabilities", dict)()
        native = next((flag for flag in ("amx_bf16", "avx512_bf16", "sve_bf16") if can.get(flag)), None)
        if not native:
            return "fp32", "the processor has no native bf16"
        gain = speed_up(device)
        return ("bf16" if gain > 1.1 else "fp32"), f"the processor's {native} is {gain:.1f} times as fast as fp32"
    return "fp32", f"bf16 on {device.type} is untried"


def on_device_if_it_fits(images, device):
    """images on device; as they are if they would take more than half of the memory that is free there.

    The other half is for the networks. On devices that share the host's memory nothing can be gained."""
    if device.type in ("cuda", "xpu"):
        free = torch.get_device_module(device).mem_get_info(device)[0]
        if images.nbytes > free / 2:
            print(f"The images stay in the host's memory, batches are moved: they take {images.nbytes / 1e9:.1f} GB "
                  f"and {free / 1e9:.1f} GB are free on {device}.")
            return images
    return images.to(device)


def moved(batch, device):
    """batch on device. What comes from the host is pinned there first, so that a GPU need not be waited for."""
    if batch.device.type == "cpu" and device.type == "cuda":
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True)


class Slices:
    """A sampler for DataLoader: the lists of indices that batches gives, as slices of one tensor on device an epoch."""

    def __init__(self, batches, device):
        self.batches, self.device = batches, device

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        batches = iter(self.batches)
        epoch = list(itertools.islice(batches, len(self.batches)))
        yield from torch.tensor(list(itertools.chain(*epoch)), device=self.device).split(len(epoch[0]))
        yield from batches  # none is left, but torch's sampler draws here, and the next epoch's order follows


def indices_on_device(loader, device):
    """loader, a DataLoader over a list of indices, with the same batches, whose collate_fn gets tensors on device.

    A list that indexes a tensor is copied to its device, and waited for, at every step."""
    return DataLoader(torch.tensor(loader.dataset, device=device), None, sampler=Slices(loader.batch_sampler, device),
                      collate_fn=loader.collate_fn, generator=loader.generator)


SHIFTS = [(1 - 2 * j, 2 * j - 1, 1 - 2 * i, 2 * i - 1) for i in (0, 1) for j in (0, 1)]  # left, right, top, bottom


def small_conv(x, weight):
    """F.conv2d(x, weight, stride=2, padding=1) for x (batch, in, 4, 4) and weight (out, in, 4, 4): (batch, out, 2, 2).

    A kernel as large as the picture sees all of it in each of its four places, moved by one pixel to either side."""
    x = x.permute(0, 2, 3, 1)
    seen = torch.stack([F.pad(x, (0, 0, *shift)) for shift in SHIFTS], dim=1)          # (batch, 4, 4, 4, in)
    out = F.linear(seen.flatten(2), weight.permute(0, 2, 3, 1).flatten(1))             # (batch, 4, out)
    return out.unflatten(1, (2, 2)).permute(0, 3, 1, 2)


def small_deconv(x, weight):
    """F.conv_transpose2d(x, weight, stride=2, padding=1) for x (batch, in, 2, 2) and weight (in, out, 4, 4): the other
    way round, (batch, out, 4, 4) is the sum of four pictures, each moved by one pixel to either side."""
    # Two-dimensional on purpose: without gradients torch has a slow way for a batch of matrices times one.
    painted = x.permute(0, 2, 3, 1).flatten(0, 2) @ weight.permute(0, 2, 3, 1).flatten(1)
    painted = painted.view(len(x), 4, 4, 4, -1)                                        # (batch, 4, 4, 4, out)
    return sum(F.pad(painted[:, n], (0, 0, *(-s for s in SHIFTS[n]))) for n in range(4)).permute(0, 3, 1, 2)


def small_as_products(network):
    """Let the convolutions of network between 4x4 and 2x2 pixels compute as matrix products on the CPU; returns network.

    The result is the same up to rounding. If weights are many and pixels few, a processor's convolution is slow:
    with AVX-512, ONEDNN_VERBOSE=1 shows 80 to 100 GFLOP/s there and about 200 in the other large layers."""
    def forward(self, x):
        if isinstance(self, torch.nn.Conv2d):
            return small_conv(x, self.weight) if x.shape[2:] == (4, 4) else type(self).forward(self, x)
        return small_deconv(x, self.weight) if x.shape[2:] == (2, 2) else type(self).forward(self, x)

    for layer in network.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)) and layer.bias is None and (
                layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups) == (
                (4, 4), (2, 2), (1, 1), (1, 1), 1) and layer.weight.device.type == "cpu":
            layer.forward = types.MethodType(forward, layer)
    return network


def in_memory_order(optimizer):
    """Let each step of optimizer see kernels in the order in which channels_last keeps them in memory; returns optimizer.

    The fused Adam for processors (seen in torch 2.14) copies every gradient that is not in PyTorch's default order, and
    then computes on memory as it lies all the same. Without the copy a step gives the same bit for bit, sooner."""
    def turn(optimizer, order):
        for p in optimizer.param_groups[0]["params"]:
            if p.dim() == 4:
                gradient, p.grad = p.grad, None  # a gradient must have the shape of its parameter at all times
                p.data = p.data.permute(order)
                p.grad = None if gradient is None else gradient.permute(order)
                for name, value in optimizer.state[p].items():
                    optimizer.state[p][name] = value.permute(order) if value.dim() == 4 else value

    if optimizer.param_groups[0]["params"][0].device.type == "cpu":
        optimizer.register_step_pre_hook(lambda optimizer, *_: turn(optimizer, (0, 2, 3, 1)))
        optimizer.register_step_post_hook(lambda optimizer, *_: turn(optimizer, (0, 3, 1, 2)))
    return optimizer
