"""Tests that a learner runs under each definition: silent but for one line, and one sentence where something is wrong.

They judge what a definition does, not how it is written: any names, any layers, any depth. Networks take images
(batch, 3, 32, 32) in [-1, 1] and are called as Discriminator(conv_dim) and Generator(z_size, conv_dim).
"""
import torch
from torch import nn


def check(condition, sentence):
    """Raise AssertionError with sentence unless condition holds."""
    if not condition:
        raise AssertionError(sentence)


def passed():
    print("Tests Passed")


def check_gradients(network, name, loss):
    """Every parameter of network must get a gradient, not all zeros, from loss."""
    network.zero_grad()
    check(loss.requires_grad, f"{name}'s output has no gradient: is something detached or under no_grad in forward?")
    loss.backward()
    for parameter, value in network.named_parameters():
        check(value.grad is not None and value.grad.abs().sum() > 0,
              f"{name}'s parameter {parameter} gets no gradient: is its layer used in forward?")


def test_discriminator(Discriminator):
    """Discriminator(conv_dim) must give logits (batch, 1), by strided convolutions, with a gradient everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for conv_dim, batch in ((32, 50), (10, 4)):
            D = Discriminator(conv_dim)
            images = torch.rand(batch, 3, 32, 32) * 2 - 1
            before = images.clone()
            out = D(images)
            check(isinstance(out, torch.Tensor) and out.shape == (batch, 1),
                  f"The discriminator gives {tuple(getattr(out, 'shape', ()))} for {batch} images; one logit an image, "
                  f"({batch}, 1), is wanted.")
            check(torch.equal(images, before), "The discriminator changes the images it is given: avoid in-place work.")
            check(not any(isinstance(m, (nn.MaxPool2d, nn.AdaptiveMaxPool2d)) for m in D.modules()),
                  "The discriminator has max pooling: shrink with strided convolutions instead.")
            check_gradients(D, "The discriminator", (out * torch.randn_like(out)).sum())
            D.eval()
            far = torch.cat([D(scale * torch.randn(1, 3, 32, 32)) for scale in (1, 10, 100, 1000)])
            bounded = ((far >= 0) & (far <= 1)).all() or (far.abs() <= 1).all() and conv_dim == 32
            check(not bounded, "The discriminator's output stays within bounds: return the logit itself, with no "
                               "sigmoid or tanh.")
    passed()


def test_generator(Generator):
    """Generator(z_size, conv_dim) must turn z into different images in [-1, 1] by a tanh, with a gradient everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for z_size, conv_dim, batch in ((100, 32, 50), (25, 10, 4)):
            G = Generator(z_size, conv_dim)
            z = torch.rand(batch, z_size) * 2 - 1
            before = z.clone()
            images = G(z)
            check(isinstance(images, torch.Tensor) and images.shape == (batch, 3, 32, 32),
                  f"The generator gives {tuple(getattr(images, 'shape', ()))} for {batch} inputs; ({batch}, 3, 32, 32) "
                  "is wanted.")
            check(torch.equal(z, before), "The generator changes the z it is given: avoid in-place work.")
            check(images.abs().max() <= 1, "The generator's images leave [-1, 1]: end in a tanh.")
            check(images.min() < 0, "The generator's images have no value below 0: end in a tanh, not a sigmoid.")
            check((images[0] - images[1]).abs().max() > 1e-6,
                  "The generator draws the same image for every z: is z used in forward?")
            check_gradients(G, "The generator", (images * torch.randn_like(images)).sum())
            G.eval()
            check(G(z[:1]).shape == (1, 3, 32, 32), "The generator needs more than one z in eval mode.")
    passed()


def test_weights_init(weights_init_normal):
    """weights_init_normal(m) must draw weights from N(0, 0.02), zero the biases and leave batch normalisation alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.ModuleList([nn.Conv2d(64, 64, 4), nn.ConvTranspose2d(64, 64, 4, bias=False), nn.Linear(200, 200)])
        layers.apply(weights_init_normal)
        for layer in layers:
            name, deviation = type(layer).__name__, layer.weight.std().item()
            check(0.019 < deviation < 0.021 and abs(layer.weight.mean().item()) < 0.001,
                  f"The weights of {name} have deviation {deviation:.3f}; N(0, 0.02) is wanted.")
            check(layer.bias is None or not layer.bias.any(), f"The bias of {name} is not zero.")
        norm = nn.BatchNorm2d(64).apply(weights_init_normal)
        check((norm.weight == 1).all() and not norm.bias.any(),
              "Batch normalisation's scale or shift is overwritten: leave them at 1 and 0.")
    passed()


def test_losses(real_loss, fake_loss):
    """real_loss and fake_loss must be the mean binary cross-entropy of logits with labels 1 and 0."""
    for logits in (torch.tensor([[-3.0], [0.0], [2.0]]), torch.tensor([[40.0]]), torch.tensor([[-1.5]])):
        for loss, sign, name in ((real_loss, -1, "real_loss"), (fake_loss, 1, "fake_loss")):
            value, wanted = loss(logits), torch.logaddexp(torch.zeros(()), sign * logits.double()).mean()
            check(value.dim() == 0, f"{name} gives {tuple(value.shape)}; one number is wanted.")
            swapped = torch.logaddexp(torch.zeros(()), -sign * logits.double()).mean()
            if not torch.isclose(value.double(), wanted, rtol=1e-4, atol=1e-6):
                check(not torch.isclose(value.double(), swapped, rtol=1e-4),
                      f"{name} uses the other label: 1 is real, 0 is fake.")
                check(False, f"{name} is {value:.4f} for logits {logits.flatten().tolist()}; {wanted:.4f} is wanted, the "
                             "cross-entropy of logits (has a sigmoid been applied?).")
    passed()


def test_scale(scale):
    """scale(x, feature_range=(-1, 1)) must take [0, 1] linearly to feature_range."""
    x = torch.rand(2, 3, 8, 8)
    before = x.clone()
    check(torch.allclose(scale(x), 2 * x - 1), "scale must take 0 to -1 and 1 to 1.")
    check(torch.allclose(scale(x, (0, 5)), 5 * x), "scale must use feature_range.")
    check(torch.equal(x, before), "scale changes the images it is given.")
    passed()


def test_dataloader(loader):
    """A loader of one epoch: full batches of float images in [0, 1], shuffled anew each epoch."""
    images = next(iter(loader))
    images = images[0] if isinstance(images, (list, tuple)) else images
    check(images.dim() == 4 and images.shape[1] == 3, f"A batch is {tuple(images.shape)}; (batch, 3, height, width) is wanted.")
    check(images.is_floating_point() and images.min() >= 0 and 0.1 < images.max() <= 1,
          f"A batch is {images.dtype} from {images.min():.3g} to {images.max():.3g}; floats in [0, 1] are wanted.")
    if len(loader) > 1:
        again = next(iter(loader))
        again = again[0] if isinstance(again, (list, tuple)) else again
        check(not torch.equal(images, again), "The first batch is the same in every epoch: shuffle.")
    passed()


def test_training_steps(discriminator_step, generator_step, Discriminator, Generator):
    """Each step must change its own player only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        D, G = Discriminator(8), Generator(10, 8)
        device = "cpu"
        d_optimizer, g_optimizer = (torch.optim.SGD(network.parameters(), lr=0.1) for network in (D, G))

        def state(network):
            return torch.cat([p.detach().flatten().clone() for p in network.parameters()])

        real, fake = torch.rand(8, 3, 32, 32, device=device) * 2 - 1, G(torch.rand(8, 10))
        d_before, g_before = state(D), state(G)
        discriminator_step(D, d_optimizer, real, fake)
        check(not torch.equal(state(D), d_before), "The discriminator's step does not change the discriminator.")
        check(torch.equal(state(G), g_before), "The discriminator's step changes the generator.")
        check(all(p.grad is None or not p.grad.any() for p in G.parameters()),
              "The discriminator's step leaves gradients on the generator: detach the fakes.")
        d_before = state(D)
        generator_step(D, G, g_optimizer, fake)
        check(not torch.equal(state(G), g_before), "The generator's step does not change the generator.")
        check(torch.equal(state(D), d_before), "The generator's step changes the discriminator.")
        check(all(p.requires_grad for p in D.parameters()), "The generator's step leaves the discriminator frozen.")
    passed()
