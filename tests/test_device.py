"""What a step and a batch ask of their device, seen on the `meta` device: no host in between, one result."""
import contextlib
import copy
import itertools

import pytest
import torch
from test_rejection import definitions as cached
from torch.nn import functional as F
from torch.optim import optimizer as torch_optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plumbing.story import definitions

CPU, META = torch.device("cpu"), torch.device("meta")
changed = cached.__wrapped__  # a module of its own at each call: the tests below put it on another device


# --- A step makes nothing on the host and reads nothing back ----------------------------------------------------------

class Operations(TorchDispatchMode):
    """Inside, every operation's name goes to names, and to faults if it reads back or has a tensor elsewhere."""

    def __init__(self, device):
        super().__init__()
        self.device, self.names, self.faults = device, set(), []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result, name = function(*arguments, **(options or {})), function.overloadpacket.__name__
        self.names.add(name)
        tensors = [x for x in tree_leaves((arguments, options, result)) if isinstance(x, torch.Tensor)]
        if name == "_local_scalar_dense" or any(x.device.type != self.device.type for x in tensors):
            self.faults.append(name)
        return result


class Numbers(TorchFunctionMode):
    """Inside, numbers that Python hands to a device go to faults: they are copied there, and no operation shows it."""

    def __init__(self, faults):
        super().__init__()
        self.faults = faults

    def __torch_function__(self, function, types, arguments=(), options=None):
        index = arguments[1] if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) else ()
        lists = [part for part in (index if isinstance(index, tuple) else [index]) if isinstance(part, list)]
        if lists or function in (torch.tensor, torch.as_tensor, torch.asarray):
            self.faults.append(function.__name__)
        return function(*arguments, **(options or {}))


@contextlib.contextmanager
def watched(device):
    """Yields what Operations notes; its faults end with the error if something cannot be done on the meta device."""
    operations = Operations(device)
    with Numbers(operations.faults), operations:
        try:
            yield operations
        except (RuntimeError, NotImplementedError) as error:
            assert "meta" in str(error)
            operations.faults.append(str(error))


@pytest.fixture(autouse=True)
def fused_on_meta(monkeypatch):
    """The optimizers' fused form has a meta kernel, and torch only does not list it."""
    kinds = torch_optimizer._get_fused_kernels_supported_devices()
    assert {"cuda", "mps", "xpu", "cpu"} <= set(kinds)  # those that the parameter device can name
    monkeypatch.setattr(torch_optimizer, "_get_fused_kernels_supported_devices", lambda: [*kinds, "meta"])


def steps(module, **parameters):
    """What two steps of both players and the average ask for, on module.device."""
    vars(module).update(parameters)
    if module.device == META:
        module.autocast = contextlib.nullcontext  # torch has none for meta
    D, G = module.build_network(4, 4, module.z_size)
    optimizers = [torch.optim.Adam(network.parameters(), 1e-3, (0.5, 0.999), fused=True) for network in (D, G)]
    G_average, real_images = copy.deepcopy(G).eval(), torch.rand(8, 3, 32, 32, device=module.device)
    with watched(module.device) as operations:
        for step in (1, 2):
            module.slow_down(*optimizers, step)
            assert module.play_step(D, G, *optimizers, real_images).shape == (4,)
            module.look_ahead(*optimizers, step)
            module.move_average(G_average, G, step)
    return operations


@pytest.mark.parametrize("augment", ["", "flip shift"])
@pytest.mark.parametrize("device, precision", [(META, "fp32"), (CPU, "fp32"), (CPU, "bf16")])
def test_a_step_makes_nothing_on_the_host_and_reads_nothing_back(device, precision, augment):
    operations = steps(definitions(device=device, precision=precision, augment=augment, lookahead=1))
    assert operations.faults == [] and {"_fused_adam_", "convolution_backward", "lerp_"} <= operations.names


def batches(module):
    """Faults of an epoch's batches on the meta device, but those of the first, which may bring the indices of all."""
    module.device, module.photos.check_faces = META, lambda *_: None  # it asks once, and there is nothing to see on meta
    loader, _ = module.get_dataloader(16, 8)
    iterator = iter(loader)
    with watched(META) as operations:
        next(iterator)
        operations.faults.clear()
        rest = list(itertools.islice(iterator, len(loader) - 1))
        assert len(rest) == len(loader) - 1 == 7 and {batch.device for batch in rest} == {META}
    return operations.faults


def test_the_batches_of_an_epoch_come_with_one_copy():
    assert batches(changed()) == []
    loader, _ = changed().get_dataloader(16, 8)
    with watched(CPU) as operations:
        assert len(list(loader)) == 8
    assert operations.faults == ["_local_scalar_dense", "tensor"]  # DataLoader draws a number; the order of an epoch


READ_BACK = {  # title: (right code, what reads back or makes something on the host)
    "loss.item()": ("return g_loss.detach()", "return g_loss.detach() * g_loss.item()"),
    "if loss": ("g_loss.backward()", "g_loss.backward() if g_loss > 0 else None"),
    "tolist": ("return torch.stack([d_loss.detach(), ", "return d_loss.detach().tolist() or torch.stack([d_loss, "),
    "isnan().any()": ("d_loss.backward()", "assert not d_loss.isnan().any(); d_loss.backward()"),
    "noise from the host": ("torch.randn(images.shape, device=images.device)",
                            "torch.randn(images.shape).to(images.device)"),
    "z from NumPy": ("torch.rand(count, z_size, device=device, generator=generator)",
                     "torch.from_numpy(np.random.rand(count, z_size)).float().to(device)"),
    "labels from a list": ("torch.zeros_like(D_out.float())", "torch.tensor([[0.0]] * len(D_out), device=D_out.device)"),
    "a list that indexes": ("scale(real_images)", "scale(real_images[list(range(8))])"),
    "a list and a slice that index": ("scale(real_images)", "scale(real_images[list(range(8)), :])"),
    "a number of the host": ("average.lerp_(current, 1 - beta)", "average.lerp_(current, torch.tensor(1 - beta))")}


@pytest.mark.parametrize("old, new", READ_BACK.values(), ids=READ_BACK)
def test_a_step_that_reads_back_is_found(old, new):
    assert steps(changed(old, new), device=META, augment="flip shift").faults


@pytest.mark.parametrize("old, new", [
    ("images[indices]", "images[indices.tolist()]"), ("images[indices]", "images.cpu()[indices.cpu()]"),
    ("[speed.indices_on_device(loader, images.device) for loader in loaders]", "loaders")],
    ids=["to a list", "by the host", "torch's own lists"])
def test_a_loader_that_reads_back_is_found(old, new):
    assert batches(changed(old, new))


# --- Deterministic on CUDA --------------------------------------------------------------------------------------------

# What has no deterministic form there and could come into a step: from the text of torch.use_deterministic_algorithms.
UNDETERMINED = {"grid_sampler_2d_backward", "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "put_",
                "upsample_bilinear2d_backward", "upsample_bicubic2d_backward", "reflection_pad2d_backward",
                "max_unpool2d", "fractional_max_pool2d_backward", "nll_loss2d_forward", "histc", "median"}


def shifted_by_sampling(images):
    """shifted as it was, by affine_grid and grid_sample: the same random numbers, the same pictures."""
    count, size, most = len(images), images.shape[-1], images.shape[-1] // 8
    pixels = torch.randint(-most, most + 1, (count, 2), device=images.device)
    pixels = pixels * (torch.rand(count, 1, device=images.device) < 0.5)
    move = torch.eye(2, 3, device=images.device).repeat(count, 1, 1)
    move[:, :, 2] = 2 * pixels / size
    where = F.affine_grid(move, images.shape, align_corners=False)
    return F.grid_sample(images.float(), where, mode="nearest", padding_mode="zeros", align_corners=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_shifting_by_index_is_shifting_by_sampling(size, dtype):
    layout, found = {"memory_format": torch.channels_last}, []
    images = torch.rand(32, 3, size, size).to(dtype, **layout).requires_grad_()
    for shifted in (definitions().shifted, shifted_by_sampling):
        torch.manual_seed(size)
        moved = shifted(images)
        found.append((moved, *torch.autograd.grad((moved * torch.arange(size)).sum(), images)))
    (a, a_gradient), (b, b_gradient) = found
    assert torch.equal(a, b) and torch.equal(a_gradient, b_gradient) and a.stride() == b.stride()
    assert 0.3 < (a != images).flatten(1).any(dim=1).float().mean() < 0.7


def test_no_operation_of_a_step_is_without_a_deterministic_form():
    module = definitions(device=META, augment="flip shift")
    assert not steps(module).names & UNDETERMINED
    assert steps(module, shifted=shifted_by_sampling).names & UNDETERMINED


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deterministic_algorithms_change_nothing(precision):
    results = []
    for asked in (False, True):
        torch.use_deterministic_algorithms(asked)
        try:
            torch.manual_seed(0)
            module = definitions(precision=precision, augment="flip shift")
            D, G = module.build_network(8, 8, 100)
            optimizers = [torch.optim.Adam(network.parameters(), 1e-3, fused=True) for network in (D, G)]
            for _ in range(3):
                row = module.play_step(D, G, *optimizers, torch.rand(8, 3, 32, 32))
            results.append([row, *D.parameters(), *G.parameters()])
        finally:
            torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, *results))


# --- 128x128 ----------------------------------------------------------------------------------------------------------

def test_a_step_at_128():
    module = definitions(image_size=128, augment="shift")
    D, G = module.build_network(4, 4, 100)
    before = [parameter.clone() for parameter in (*D.parameters(), *G.parameters())]
    optimizers = [torch.optim.Adam(network.parameters(), 1e-3, fused=True) for network in (D, G)]
    row = module.play_step(D, G, *optimizers, torch.rand(4, 3, 128, 128))
    assert row.isfinite().all() and module.generate(G, module.random_z(2)).shape == (2, 128, 128, 3)
    assert not any(map(torch.equal, before, (*D.parameters(), *G.parameters())))
