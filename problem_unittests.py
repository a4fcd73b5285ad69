"""Tests that a learner runs under each definition: silent but for one line, and one sentence if something is wrong.

They judge what a definition does, not how it is written: any names, any layers, any depth. Networks take images
(batch, 3, 32, 32) in [-1, 1] and are made by Discriminator(conv_dim) and Generator(z_size, conv_dim).
"""
import inspect
import itertools
from contextlib import contextmanager, suppress

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

SEED = 0  # the start of the tests' random numbers; tests/test_rejection.py shows that no verdict depends on it


def check(condition, sentence):
    """Raise AssertionError with sentence unless condition holds."""
    if not condition:
        raise AssertionError(sentence)


def attempt(task, function, *arguments):
    """function(*arguments); an exception from it becomes one sentence, without the traceback from inside torch."""
    try:
        return function(*arguments)
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0][:150].rstrip(".")
        raise AssertionError(f"{task} fails with {type(error).__name__}: {reason}.") from None


@contextmanager
def inline_test():
    """Inside, random numbers start at SEED; afterwards the notebook's go on as before. One line says that it passed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)  # torch.manual_seed would reset the GPU's numbers as well
        yield
    print("Tests Passed")


def outputs(name, network, inputs, shape, kind):
    """network(inputs), after checks that it is a tensor of that shape with finite numbers."""
    check(attempt(f"Listing the parameters of {name.lower()}", lambda: list(network.parameters())),
          f"{name} has no parameters: give it layers, as attributes of self or in an nn.ModuleList.")
    mode = "training" if network.training else "eval"
    out = attempt(f"{name} on a batch of {len(inputs)} in {mode} mode", network, inputs)
    check(isinstance(out, torch.Tensor), f"{name} returns a {type(out).__name__}; its forward must return a tensor.")
    check(tuple(out.shape) == shape,
          f"{name} gives {tuple(out.shape)} on a batch of {len(inputs)} in {mode} mode: return {kind}, {shape}.")
    check(out.requires_grad, f"{name}'s output has no gradient: look for detach, .data or no_grad in forward.")
    check(out.isfinite().all(), f"{name}'s output is not finite: look for a division or a logarithm in forward.")
    try:
        network.to(memory_format=torch.channels_last)(
            inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs)
    except Exception:
        raise AssertionError(f"{name} fails on images stored channels_last, as this notebook stores them: use reshape "
                             "or flatten in place of view.") from None
    return out


def check_gradients(name, network, inputs):
    """The inputs and every parameter of network must get a gradient from its output."""
    # Some networks start with a factor of zero, which blocks a gradient until the first step: step away from there.
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    network.train().zero_grad()
    for _ in range(4):  # dropout may leave nothing of one pass
        out = attempt(f"{name} after a small change of its parameters", network, inputs).float()
        attempt(f"The backward pass of {name.lower()}", (out * torch.randn_like(out)).sum().backward)
    for parameter, value in network.named_parameters():
        # The gradient of a bias in front of a normalisation is rightly zero, that of a matrix or a kernel is not.
        check(value.grad is not None and (value.dim() < 2 or value.grad.any()),
              f"{name}'s parameter {parameter} gets no gradient: is its layer used in forward and not frozen?")
    inputs = inputs.clone().requires_grad_()
    out = attempt(f"{name} on an input that wants a gradient", network.eval(), inputs).float()
    gradient, = torch.autograd.grad((out * torch.randn_like(out)).sum(), inputs, allow_unused=True)
    check(gradient is not None and gradient.flatten(1).any(dim=1).all(),
          f"{name} passes no gradient to its input: look for detach, .data or no_grad at the start of forward.")
    return gradient


def trained_towards(sign, network, inputs, reached):
    """The outputs of network after training it towards large (sign 1) or small (-1) ones, until reached(outputs)."""
    optimizer = torch.optim.Adam(network.train().parameters(), lr=0.02)
    # Unequal weights, because batch normalisation may keep the mean of the outputs from moving.
    weights = 0.5 + torch.rand_like(network(inputs), dtype=torch.float32)
    for _ in range(25):
        out = network(inputs).float()
        if reached(out):
            break
        optimizer.zero_grad()
        attempt("The backward pass of a network", (-sign * (out * weights).mean()).backward)
        optimizer.step()
    return out.detach()


def graph_nodes(out):
    """All operations that a gradient of out passes through."""
    found, waiting = set(), [out.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting.extend(following for following, _ in node.next_functions)
    return found


@inline_test()
def test_discriminator(Discriminator):
    """Discriminator(conv_dim) must give logits (batch, 1), by strided convolutions, with a gradient everywhere."""
    name = "The discriminator"
    for conv_dim in (64, 32):
        D = attempt(f"Discriminator({conv_dim})", Discriminator, conv_dim)
        for batch in (6, 5):
            images = torch.rand(batch, 3, 32, 32) * 2 - 1
            before = images.clone()
            out = outputs(name, D, images, (batch, 1), "one logit per image")
            check(torch.equal(images, before), f"{name} changes its input: look for in-place work in forward.")
        out = attempt(f"{name} on images that want a gradient", D, images.clone().requires_grad_())
        check(not any("MaxPool" in node.name() for node in graph_nodes(out)),
              f"{name} uses max pooling: shrink with strided convolutions instead.")
        outputs(name, D.eval(), images[:1], (1, 1), "one logit per image")
    # An untrained logit may happen to lie between 0 and 1, but one that can be trained to leave on both sides is free.
    for sign, side in ((-1, "below -2"), (1, "above 2")):
        out = trained_towards(sign, Discriminator(32), images, lambda out: (sign * out).max() > 2)
        check((sign * out).max() > 2, f"{name}'s output does not get {side} however it is trained: forward must return "
                                      "the logit of the last layer, with no sigmoid, tanh or ReLU after it.")
    check_gradients(name, D, images)


@inline_test()
def test_generator(Generator):
    """Generator(z_size, conv_dim) must turn z into different images in [-1, 1], with a gradient everywhere."""
    name = "The generator"
    for z_size, conv_dim in ((25, 64), (100, 32)):
        G = attempt(f"Generator({z_size}, {conv_dim})", Generator, z_size, conv_dim)
        for batch in (6, 5):
            z = torch.rand(batch, z_size) * 2 - 1
            before = z.clone()
            images = outputs(name, G, z, (batch, 3, 32, 32), "one image per z")
            check(torch.equal(z, before), f"{name} changes its input: look for in-place work in forward.")
            check(images.abs().max() <= 1, f"{name}'s images leave [-1, 1]: end forward in a tanh.")
        outputs(name, G.eval(), z[:1], (1, 3, 32, 32), "one image per z")
    state = torch.get_rng_state()
    images = G(z)
    torch.set_rng_state(state)  # if forward draws noise of its own, it draws the same again
    others = G(z.flip(1))
    check((images - others).abs().max() > 1e-6, f"{name} draws the same images for every z: is z used in forward?")
    check((images[0] - images[1]).abs().max() > 1e-6,
          f"{name} draws identical images for all z of a batch: does forward keep the batch dimension apart?")
    check(check_gradients(name, G, z).any(dim=0).all(), f"{name} ignores some numbers of z: does forward use all of z?")
    low, high = [trained_towards(sign, Generator(100, 32), z,
                                 lambda out: sign * out.mean() > 0.95 or out.abs().max() > 1) for sign in (-1, 1)]
    low, high = low.min().item(), high.max().item()
    check(low >= -1 and high <= 1, f"{name}'s images leave [-1, 1] when it is trained to: end forward in a tanh.")
    check(low < -0.5 and high > 0.5,
          f"{name}'s images reach only from {low:.1f} to {high:.1f} however it is trained: end forward in a "
          "tanh, not in a sigmoid or ReLU.")


@inline_test()
def test_weights_init(weights_init_normal):
    """weights_init_normal(m) must draw weights from N(0, 0.02) and leave batch normalisation alone."""
    for bias in (True, False):
        for layer in (nn.Conv2d(32, 128, 4, bias=bias), nn.ConvTranspose2d(128, 32, 4, bias=bias),
                      nn.Linear(256, 256, bias=bias)):
            kind = type(layer).__name__
            for parameter in layer.parameters():
                nn.init.ones_(parameter)
            attempt(f"weights_init_normal on {kind}(bias={bias})", layer.apply, weights_init_normal)
            weight = layer.weight.detach().float()
            check((weight != 1).any(), f"weights_init_normal misses {kind}: it must draw its weights anew.")
            check(0.019 < weight.std() < 0.021 and abs(weight.mean()) < 0.001 and weight.abs().max() > 0.06,
                  f"weights_init_normal gives {kind} weights of mean {weight.mean():.3f} and deviation "
                  f"{weight.std():.3f}: draw them from a normal distribution with mean 0 and deviation 0.02.")
    for layer in (nn.BatchNorm2d(64), nn.BatchNorm1d(64), nn.LeakyReLU()):
        kind = type(layer).__name__
        attempt(f"weights_init_normal on {kind}", layer.apply, weights_init_normal)
        for parameter, start in zip(layer.parameters(), (1, 0)):
            # 0.2 leaves room for the N(1, 0.02) that some recipes give the scale.
            check((parameter - start).abs().max() < 0.2,
                  f"weights_init_normal overwrites the scale or the shift of {kind}: leave them at 1 and 0.")


@inline_test()
def test_losses(real_loss, fake_loss):
    """Both must be the mean binary cross-entropy of logits (batch, 1), with a label, by default 1, and with label 0."""
    check(len(attempt("Reading the arguments of real_loss", inspect.signature, real_loss).parameters) > 1,
          "real_loss needs a second argument, the label (default 1): the step below calls real_loss(D_out, 0.9) for "
          "smoothed labels.")
    losses = ((real_loss, (), 1, "real_loss", "label 1 by default (the label argument asks for smoothing)"),
              (fake_loss, (), 0, "fake_loss", "label 0"),
              (real_loss, (0.9,), 0.9, "real_loss with label 0.9", "the label that it is given"))
    values = ([[-3.0], [0.5], [2.0]], [[-1.5]], [[200.0], [3.0]], [[-200.0], [-3.0]])
    for (loss, given, label, name, meant), numbers, dtype, mixed in itertools.product(
            losses, values, (torch.float32, torch.bfloat16), (False, True)):
        logits = torch.tensor(numbers, dtype=dtype, requires_grad=True)
        case = f"{name} of {len(numbers)} {str(dtype)[6:]} logits {'under autocast' if mixed else ''}".strip()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            value = attempt(case, loss, logits, *given)
        exact = logits.detach().double()
        wanted = (label * F.softplus(-exact) + (1 - label) * F.softplus(exact)).mean()
        other = F.softplus(exact if label else -exact).mean()
        check(isinstance(value, torch.Tensor) and not value.dim(), f"{case} is not one number: return a tensor of one.")
        close = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
        found = value.detach().double()
        if not torch.isclose(found, wanted, **close):
            check(not torch.isclose(found, other, **close), f"{name} uses the other label: 1 is real, 0 is fake.")
            check(not torch.isclose(found, wanted * len(numbers), **close), f"{name} is a sum: take the mean.")
            check(False, f"{case} is {found:.4g} and not {wanted:.4g}: this notebook asks for the binary cross-entropy "
                         f"of the logits themselves, without a sigmoid, with {meant}.")
        check(value.requires_grad, f"{name} has no gradient: look for detach, item or no_grad.")
        attempt(f"The backward pass of {name}", value.backward)
        check(torch.allclose(logits.grad.double(), (exact.sigmoid() - label) / len(numbers), rtol=2e-2, atol=1e-3),
              f"{name} has a wrong gradient: look for detach or no_grad on part of it.")


@inline_test()
def test_scale(scale):
    """scale(x, feature_range=(-1, 1)) must take [0, 1] linearly to feature_range."""
    x = 0.2 + 0.5 * torch.rand(2, 3, 8, 8)  # not up to 0 and 1: the range of a batch is not the range of images
    before = x.clone()
    for arguments, (low, high) in (((), (-1, 1)), (((0, 5),), (0, 5)), (((-3, -1),), (-3, -1))):
        found = attempt(f"scale with feature_range {(low, high)}", scale, x, *arguments)
        check(torch.equal(x, before), "scale changes the images it is given: look for in-place work.")
        check(isinstance(found, torch.Tensor) and found.shape == x.shape and
              torch.allclose(found.float(), x * (high - low) + low, atol=1e-5),
              f"scale is wrong for feature_range {(low, high)}: it must take 0 to {low} and 1 to {high}, linearly, "
              "whatever else is in the batch.")


def fingerprints(loader, batches):
    """One number an image, equal for equal images, for each batch of an epoch; and whether that was the whole epoch.
    At most that many batches are read, and no more than 100 MB, 8,000 images of 32x32."""
    found, size, iterator = [], 0, attempt("iter(loader)", iter, loader)
    while (images := attempt("The loader", next, iterator, None)) is not None:
        if len(found) == batches or size > 1e8:
            return found, False
        check(isinstance(images, torch.Tensor) and images.dim() == 4 and images.shape[1] == 3 and len(images) > 0,
              f"A batch is a {type(images).__name__} of shape {tuple(getattr(images, 'shape', ()))}: the loader must "
              "give tensors (batch, 3, height, width), without labels.")
        check(images.is_floating_point(), f"A batch is {images.dtype}: the loader must give floats in [0, 1].")
        low, high = images.min().item(), images.max().item()
        check(low >= 0 and high <= 1 and (high > 0.05 or len(images) < 8),
              f"A batch has values from {low:.3g} to {high:.3g}: the loader must give images in [0, 1].")
        images = images.cpu().float().contiguous()
        size += images.nbytes
        found.append([hash(image.numpy().tobytes()) for image in images])
    return found, True


def order(loader):
    """The indices of one epoch."""
    batches = itertools.islice(loader.batch_sampler or loader.sampler, len(loader))  # lists, or tensors on a device
    return [index for batch in batches for index in torch.as_tensor(batch).flatten().tolist()]


def check_shuffled(loader, length, read):
    """The order of images must change from epoch to epoch; read is what one epoch gave."""
    some = -(-16 // len(read[0]))  # batches to compare: a random order of 16 images hardly comes twice
    epochs = [sum(fingerprints(loader, some)[0], []) for _ in range(3)]
    check(all(epochs), "The loader gives nothing in its second epoch: it must start anew each time.")
    # If an epoch has more, the images themselves must differ: shuffling inside a batch is not enough.
    keys = [sorted(epoch) if length >= 2 * some else epoch for epoch in epochs]
    indices = order(loader)
    if len(set(sum(read[:some], []))) >= 8:
        check(keys[1:] != keys[:-1] and (not indices or indices != order(loader)),
              "The images come in the same order in every epoch: give the loader shuffle=True.")


def check_complete(loader, length, read, whole, batch_size):
    """An epoch must show each image once; at most the last, incomplete batch may be dropped."""
    size, total, most = len(read[0]), sum(map(len, read)), len(loader.dataset)
    check(all(len(batch) == size for batch in read[:-1]), "The batches of an epoch differ in size: only the last may.")
    expected = min(batch_size or loader.batch_size or size, most)
    check(size == expected,
          f"A batch has {size} images and not {expected}: does the loader use batch_size, does collate_fn keep all?")
    check(most - size < length * size < most + size and (not whole or most - size < total <= most),
          f"An epoch has {length} batches of {size} for {most} images: drop none but an incomplete last batch.")
    indices = order(loader)
    check(len(set(indices)) == len(indices), "An image comes twice in an epoch: sample without replacement.")
    distinct = set(sum(read, []))
    repeats = total - len(distinct)
    if whole and repeats:
        # The data may hold equal images. But every image seen in some epoch exists, so that of the most images that
        # there are only the rest can be copies. More distinct images than that come from random augmentation.
        for _ in range(4):
            distinct.update(sum(fingerprints(loader, length)[0], []))
        check(repeats <= most - len(distinct) or len(distinct) > most,
              f"An epoch shows {repeats} images again while others are left out: each image must come once.")


@inline_test()
def test_dataloader(loaders, batch_size=None):
    """Two DataLoaders of float images in [0, 1], to train on and held out; the first gives each once, shuffled anew."""
    check(isinstance(loaders, (list, tuple)) and len(loaders) == 2 and all(isinstance(x, DataLoader) for x in loaders),
          "get_dataloader must return two DataLoaders: of the faces to train on and of the faces held out.")
    for loader in loaders:
        first = None
        with suppress(Exception):
            first = loader.collate_fn(loader.dataset[:1])
        check(isinstance(first, torch.Tensor) and first.dim() == 4,
              "This notebook draws a loader's faces in order by collate_fn(dataset[:count]): let dataset be a list of "
              "indices and collate_fn give the images at them, without labels.")
    loader = loaders[0]
    check(loader.generator is not None,
          "Give the loader a generator=torch.Generator(): by its state a stopped run goes on in the same order.")
    state = loader.generator.get_state()
    length = attempt("len(loader)", len, loader)
    check(length > 0, "The loader has no batch: is the folder empty, or batch_size larger than the data set?")
    read, whole = fingerprints(loader, length + 1)
    check(len(read) == length if whole else len(read) <= length,
          f"len(loader) is {length}, but an epoch has {len(read)} batches{'' if whole else ' or more'}.")
    check_complete(loader, length, read, whole, batch_size)
    check_shuffled(loader, length, read)
    loader.generator.set_state(state)


def parameters_of(network):
    """All parameters of network as one vector, copied."""
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def check_step(name, step, network, other, network_name, other_name, shape, wanted):
    """One call of step must change network only and return a tensor of shape; returns whether other has gradients."""
    before, other_before, modes = parameters_of(network), parameters_of(other), (network.training, other.training)
    other.zero_grad()
    found = attempt(name, step)
    check(torch.equal(parameters_of(other), other_before),
          f"{name} changes the {other_name}: step the {network_name}'s optimizer only.")
    for player, title in ((network, network_name), (other, other_name)):
        check(all(p.requires_grad for p in player.parameters()),
              f"{name} leaves the {title} frozen: set requires_grad back to True.")
    check(modes == (network.training, other.training), f"{name} leaves a network in another mode: undo eval().")
    check(not torch.equal(parameters_of(network), before),
          f"{name} does not change the {network_name}: look for a missing backward or step, or a detach too many.")
    check(isinstance(found, torch.Tensor) and found.shape == shape,
          f"{name} must return what the notebook records, a tensor of {wanted}.")
    return any(p.grad is not None and p.grad.any() for p in other.parameters())


def check_equal_steps(name, step, network):
    """Four equal calls with a small learning rate must make about equal changes, or gradients pile up."""
    network.zero_grad()
    changes = []
    for _ in range(4):
        before = parameters_of(network)
        step()
        changes.append((parameters_of(network) - before).norm())
    check(changes[3] < 2 * changes[0], f"{name} adds up the gradients of all calls: call zero_grad first.")


@inline_test()
def test_training_steps(discriminator_step, generator_step, Discriminator, Generator):
    """Each step must move its own player, the right way, by what it is given, and leave the other as it is."""
    d_name, g_name, sgd = "discriminator_step", "generator_step", torch.optim.SGD
    D, G = attempt("Discriminator(32)", Discriminator, 32), attempt("Generator(100, 32)", Generator, 100, 32)
    real, z = torch.rand(16, 3, 32, 32) * 2 - 1, torch.rand(16, 100) * 2 - 1
    outputs("The discriminator", D, real, (16, 1), "one logit per image")
    fake = outputs("The generator", G, z, (16, 3, 32, 32), "one image per z")
    d_optimizer, g_optimizer = sgd(D.parameters(), lr=1e-3), sgd(G.parameters(), lr=0.1)
    left = check_step(d_name, lambda: discriminator_step(D, d_optimizer, real, fake), D, G, "discriminator",
                      "generator", (3,), "three numbers: the loss, D's share of right answers on real, and on fakes")
    check(not left, f"{d_name} leaves gradients on the generator: detach the fakes.")
    left = check_step(g_name, lambda: generator_step(D, G, g_optimizer, fake), G, D, "generator", "discriminator",
                      (), "one number: the loss")

    # From here on with two small networks whose right answer is known. This D sees the mean of each channel; real
    # images are bright in the first and fakes in the second: each weight tells of one kind of image. Its logits start
    # between 0 and 1, for least squares to move them as well. A weight moves by some 0.03, from noise by 0.0001.
    D = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))
    G = nn.Sequential(nn.Linear(100, 3 * 32 * 32), nn.Unflatten(1, (3, 32, 32)), nn.Tanh())
    start = torch.tensor([0.1, 0.5, 0.0])
    D.load_state_dict({"2.weight": start[None], "2.bias": torch.zeros(1)})
    for parameter in D.parameters() if left else ():
        parameter.grad = torch.full_like(parameter, 1e3)
    real, fake = torch.zeros(2, 16, 3, 32, 32)
    real[:, 0], fake[:, 1] = 0.9, 0.9
    attempt(d_name, discriminator_step, D, sgd(D.parameters(), lr=0.1), real, fake)
    on_real, on_fake, rest = D[2].weight[0].detach() - start
    check(rest.abs() < 10, f"{d_name} adds the gradients that {g_name} leaves on D to its own: call zero_grad first.")
    for moved, kind in ((on_real, "real"), (on_fake, "fake")):
        check(moved.abs() > 0.005,
              f"{d_name} does not use the {kind} images: its loss needs {kind}_loss of what D says to them.")
    check(on_real > 0 > on_fake, f"{d_name} moves D the wrong way: use real_loss on real images, fake_loss on fakes.")
    slow = sgd(D.parameters(), lr=1e-3)
    check_equal_steps(d_name, lambda: discriminator_step(D, slow, real, fake), D)

    # Logits near -6: D is sure that the fakes are fake, and -log(D) is 400 times as steep as log(1 - D).
    D.load_state_dict({"2.weight": torch.ones(1, 3), "2.bias": torch.tensor([-6.0])})
    slow, before = sgd(G.parameters(), lr=0.1), parameters_of(G)
    gradients = torch.autograd.grad(F.softplus(-D(G(z))).mean(), list(G.parameters()))
    downhill = -0.1 * torch.cat([gradient.flatten() for gradient in gradients])
    attempt(g_name, generator_step, D, G, slow, G(z))
    moved = (parameters_of(G) - before) @ downhill / (downhill @ downhill)
    check(moved > 0, f"{g_name} moves G the wrong way: go down real_loss of what D says to the fakes.")
    check(moved > 0.1, f"{g_name} hardly moves G if D is sure of its fakes: use real_loss of what D says to them.")
    check_equal_steps(g_name, lambda: generator_step(D, G, slow, G(z)), G)
