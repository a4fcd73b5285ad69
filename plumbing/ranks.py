"""Several processes (ranks), a device each, that train one pair of networks, as torchrun starts them.
Alone, a process is rank 0 of 1, and nothing here does anything."""
import itertools
import os
from datetime import timedelta

import torch
import torch.distributed as dist

rank, count = 0, 1  # of this process; join sets them
BACKENDS = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}


def join(device):
    """Join the other ranks if torchrun started this process; returns device, or this rank's own of that type.

    Raises ValueError if ranks cannot work on such a device, or this host has too few of them."""
    global rank, count
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
        return device
    if device.type not in BACKENDS:
        raise ValueError(f"Several ranks work on cuda, xpu or cpu, and device is {device.type}; set device to cpu.")
    if device.type != "cpu":
        device, there = torch.device(device.type, int(os.environ["LOCAL_RANK"])), torch.get_device_module(device)
        if device.index >= there.device_count():
            raise ValueError(f"This host has {there.device_count()} devices for its ranks; lower --nproc-per-node.")
        there.set_device(device)
    pairs = {"cpu": "gloo", device.type: BACKENDS[device.type]}  # flags and objects go by gloo and wait for no device
    patience = timedelta(minutes=10)  # more than others wait while one decodes faces or measures
    dist.init_process_group(",".join(map(":".join, pairs.items())), timeout=patience)
    rank, count = dist.get_rank(), dist.get_world_size()
    return device


def first(function, *arguments):
    """What function(*arguments) gives on rank 0, which alone calls it, on every rank."""
    result = [function(*arguments) if rank == 0 else None]
    if count > 1:
        dist.broadcast_object_list(result)
    return result[0]


def gather(value):
    """The value of each rank, a list, on every rank."""
    values = [value] * count
    if count > 1:
        dist.all_gather_object(values, value)
    return values


def anywhere(flag):
    """Whether flag is true on any rank."""
    flags = torch.tensor(int(flag))
    if count > 1:
        dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def share(batches, start, stop):
    """The batches from number start on that fall to this rank, one a step: every count-th, until stop is set. If fewer
    than count are left for the last step, some are played by two ranks."""
    batches = itertools.islice(batches, start, None)
    while (step := list(itertools.islice(batches, count))) and not stop.is_set():
        yield step[rank % len(step)]


def average_gradients(optimizer, *_):
    """Replace each gradient of optimizer's by its mean over the ranks, all in one message."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    gradients = [g.as_strided((g.numel(),), (1,)) for g in gradients]  # in the order of memory, which costs nothing
    flat = torch.cat(gradients)
    dist.all_reduce(flat)
    for g, total in zip(gradients, flat.split([len(g) for g in gradients])):
        torch.div(total, count, out=g)


def unite(parts, same):
    """Let the networks in parts start as rank 0's on all ranks, and its optimizers step by the mean of all gradients.

    So the weights stay equal. Statistics of batch normalisation stay each rank's own; rank 0's are kept. Raises
    ValueError if same, a dict of what all ranks must have in common, is not."""
    for number, other in enumerate(gather(same)):
        if name := next((name for name in same if same[name] != other[name]), None):
            raise ValueError(f"{name} is {same[name]!r} on rank {rank} and {other[name]!r} on rank {number}; all ranks "
                             "need the same command and the same files.")
    for part in parts if count > 1 else ():
        if isinstance(part, torch.optim.Optimizer):
            part.register_step_pre_hook(average_gradients)
        else:
            for value in part.state_dict().values():
                dist.broadcast(value, 0)


def leave():
    """Part from the other ranks; all but rank 0 end here, quietly: papermill takes SystemExit for a success."""
    if count > 1:
        dist.destroy_process_group()
    if rank:
        raise SystemExit
