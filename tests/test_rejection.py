"""The inline tests must reject wrong definitions, each with the sentence meant for it, and accept all right ones.

`python tests/test_rejection.py` prints the table of wrong definitions as Markdown."""
import functools
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import notebook
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import DataLoader, TensorDataset

import problem_unittests as tests

SEEDS = range(5)
DEFINING = [cell for cell in notebook.cells() if "definitions" in cell.metadata.get("tags", [])]
ARGUMENTS = {
    "test_discriminator": lambda m: (m.Discriminator,),
    "test_generator": lambda m: (m.Generator,),
    "test_weights_init": lambda m: (m.weights_init_normal,),
    "test_losses": lambda m: (m.real_loss, m.fake_loss),
    "test_scale": lambda m: (m.scale,),
    "test_dataloader": lambda m: m.get_dataloader(16, 8)[:1],
    "test_training_steps": lambda m: (m.discriminator_step, m.generator_step, m.Discriminator, m.Generator),
}


def faces(count=150, copies=6):
    """Random images, the last of them copies of the first."""
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[count - copies:] = images[:copies].clone()
    return images


@functools.cache
def definitions(old="", new=""):
    """The notebook's definitions, with old replaced by new in the one cell that has it, and faces() for a data set."""
    module = notebook.definitions()
    module.helpers = SimpleNamespace(load_images=lambda data_dir, image_size: faces())
    if old:
        cell, = [cell for cell in DEFINING if old in cell.source]
        assert cell.source.count(old) == 1 and old != new
        exec(cell.source.replace(old, new), vars(module))
    return module


Mutant = namedtuple("Mutant", "title test sentence old new")
D_END, G_END = "return FC(x.flatten(start_dim=1))", "return torch.tanh(last(x))"
D_START, G_START = "*convs, FC = self.children()", "FC, *deconvs, last = self.children()"
REAL = "F.binary_cross_entropy_with_logits(D_out, torch.full_like(D_out, label))"
FAKE = "F.binary_cross_entropy_with_logits(D_out, torch.zeros_like(D_out))"
INIT_KINDS = "isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))"
D_LOSS, G_LOSS = "d_loss = real_loss(real_out, 1 - label_smoothing) + fake_loss(fake_out)", "g_loss = real_loss(fake_out)"


def mutants():
    """All mutants, by the test that must reject them."""
    for test, rows in {
        "test_discriminator": [
            ("D returns (batch,)", "return one logit", D_END, f"{D_END}.flatten()"),
            ("D returns two logits", "return one logit", "nn.Linear(channels * 2 * 2, 1)",
             "nn.Linear(channels * 2 * 2, 2)"),
            ("D squeezes a batch of one", "return one logit", D_END,
             f"out = {D_END[7:]}; return out.squeeze() if len(x) == 1 else out"),
            ("D returns a tuple", "returns a tuple", D_END, "return FC(x.flatten(start_dim=1)), x"),
            ("D returns NaN", "is not finite", D_END, "return FC(x.flatten(start_dim=1)) / 0"),
            ("D ends in a sigmoid", "however it is trained", D_END, f"return torch.sigmoid({D_END[7:]})"),
            ("D ends in a tanh", "however it is trained", D_END, f"return torch.tanh({D_END[7:]})"),
            ("D ends in a logsigmoid", "does not get above 2", D_END, f"return F.logsigmoid({D_END[7:]})"),
            ("D ends in a ReLU", "does not get below -2", D_END, f"return F.relu({D_END[7:]})"),
            ("D pools by F.max_pool2d", "max pooling", D_START,
             f"{D_START}; x = F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 2, 1)"),
            ("D pools by nn.MaxPool2d", "max pooling", D_START, f"{D_START}; x = nn.MaxPool2d(3, 1, 1)(x)"),
            ("D has an unused layer", "parameter unused gets no gradient", "self.conv1 = ",
             "self.unused = nn.Parameter(torch.ones(2, 2)); self.conv1 = "),
            ("D detaches after the convolutions", "gets no gradient", D_END,
             "return FC(x.detach().flatten(start_dim=1))"),
            ("D multiplies a parameter by zero", "parameter extra gets no gradient", D_START,
             f"self.extra = getattr(self, 'extra', nn.Parameter(torch.ones(2, 2))); x = x + 0 * self.extra.sum(); "
             f"{D_START}"),
            ("D freezes a layer", "gets no gradient", D_START, f"{D_START}; convs[1].requires_grad_(False)"),
            ("D runs under no_grad", "has no gradient", "    def forward(self, x):\n        *convs",
             "    @torch.no_grad()\n    def forward(self, x):\n        *convs"),
            ("D detaches its input", "passes no gradient to its input", D_START, f"x = x.detach(); {D_START}"),
            ("D changes its input", "changes its input", D_START, f"x.mul_(0.5); {D_START}"),
            ("D changes its input in place by nothing", "in-place", D_START, f"x.clamp_(-1, 1); {D_START}"),
            ("D has a batch size of 6 built in", "batch of 5", D_END, "return FC(x.reshape(6, -1))"),
            ("D cannot do one image in eval mode", "batch of 1 in eval mode", D_END,
             "return FC(F.batch_norm(x.flatten(1), None, None, training=True))"),
            ("D has conv_dim 32 built in", "on a batch of 6", "nn.Linear(channels * 2 * 2, 1)",
             "nn.Linear(256 * 2 * 2, 1)"),
        ],
        "test_generator": [
            ("G makes images of 16x16", "return one image per z", G_END, "return torch.tanh(last(x))[..., ::2, ::2]"),
            ("G makes gray images", "return one image per z", G_END, "return torch.tanh(last(x))[:, :1]"),
            ("G has no tanh", "leave [-1, 1]", G_END, "return last(x)"),
            ("G has no tanh and starts small", "leave [-1, 1] when it is trained to", G_END, "return 0.1 * last(x)"),
            ("G scales its tanh to [-2, 2]", "leave [-1, 1]", G_END, "return 2 * torch.tanh(last(x))"),
            ("G makes pixels up to 255", "leave [-1, 1]", G_END, "return 255 * torch.tanh(last(x))"),
            ("G ends in a sigmoid", "not in a sigmoid", G_END, "return torch.sigmoid(last(x))"),
            ("G ends in a ReLU after its tanh", "not in a sigmoid or ReLU", G_END,
             "return F.relu(torch.tanh(last(x)))"),
            ("G ignores z", "the same images for every z", G_START, f"z = torch.ones_like(z); {G_START}"),
            ("G draws a z of its own", "the same images for every z", G_START, f"z = torch.randn_like(z); {G_START}"),
            ("G uses the mean of all z", "identical images for all z", G_START,
             f"z = z.mean(0, keepdim=True).expand_as(z); {G_START}"),
            ("G uses a half of z", "ignores some numbers of z", G_START,
             f"z = torch.cat([z[:, ::2]] * 2, 1)[:, :z.shape[1]]; {G_START}"),
            ("G detaches z", "passes no gradient to its input", G_START, f"z = z.detach(); {G_START}"),
            ("G detaches on its way", "gets no gradient", G_END, "return torch.tanh(last(x.detach()))"),
            ("G has an unused layer", "gets no gradient", "channels = conv_dim * 2 ** (stages - 1)",
             "channels = conv_dim * 2 ** (stages - 1); self.register_parameter('unused', nn.Parameter(torch.ones(3)))"),
            ("G detaches its images", "has no gradient", G_END, "return torch.tanh(last(x)).detach()"),
            ("G changes z", "changes its input", G_START, f"z.mul_(2); {G_START}"),
            ("G has a batch size of 6 built in", "batch of 5", "FC(z).unflatten(1, (-1, 2, 2))",
             "FC(z).reshape(6, -1, 2, 2)"),
            ("G cannot do one image in eval mode", "batch of 1 in eval mode", "FC(z).unflatten",
             "F.batch_norm(FC(z), None, None, training=True).unflatten"),
            ("G has z_size 100 built in", "batch of 6", "nn.Linear(z_size, ", "nn.Linear(100, "),
            ("G has its arguments swapped", "batch of 6", "def __init__(self, z_size, conv_dim",
             "def __init__(self, conv_dim, z_size"),
        ],
        "test_weights_init": [
            ("Initialisation misses convolutions", "misses Conv2d", INIT_KINDS,
             "isinstance(m, (nn.ConvTranspose2d, nn.Linear))"),
            ("Initialisation misses transpose convolutions", "misses ConvTranspose2d", INIT_KINDS,
             "isinstance(m, (nn.Conv2d, nn.Linear))"),
            ("Initialisation misses linear layers", "misses Linear", INIT_KINDS,
             "isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))"),
            ("Initialisation has deviation 0.2", "draw them from a normal distribution", "std=0.02", "std=0.2"),
            ("Initialisation has variance 0.02", "draw them from a normal distribution", "std=0.02", "std=0.02 ** 0.5"),
            ("Initialisation has mean 0.02", "mean 0.020", "mean=0.0", "mean=0.02"),
            ("Initialisation is uniform", "normal distribution", "nn.init.normal_(m.weight, mean=0.0, std=0.02)",
             "nn.init.uniform_(m.weight, -0.02 * 3 ** 0.5, 0.02 * 3 ** 0.5)"),
            ("Initialisation leaves biases", "the bias of Conv2d other than zero", "nn.init.zeros_(m.bias)", "pass"),
            ("Initialisation draws biases", "the bias of Conv2d other than zero", "nn.init.zeros_(m.bias)",
             "nn.init.normal_(m.bias, 0, 0.02)"),
            ("Initialisation expects a bias", "fails with", "if m.bias is not None:", "if True:"),
            ("Initialisation draws batch normalisation's scale", "overwrites the scale", INIT_KINDS,
             "hasattr(m, 'weight')"),
        ],
        "test_losses": [
            ("real_loss has label 0", "real_loss uses the other label", REAL, FAKE),
            ("fake_loss has label 1", "fake_loss uses the other label", FAKE, FAKE.replace("zeros", "ones")),
            ("real_loss takes probabilities", "real_loss of 3 float32 logits fails", REAL,
             "F.binary_cross_entropy(D_out, torch.ones_like(D_out))"),
            ("real_loss takes a sigmoid twice", "without a sigmoid", REAL,
             REAL.replace("(D_out,", "(D_out.sigmoid(),")),
            ("fake_loss is computed from probabilities", "themselves, without a sigmoid", FAKE,
             "F.binary_cross_entropy(D_out.sigmoid(), torch.zeros_like(D_out))"),
            ("fake_loss is a sum", "fake_loss is a sum", FAKE, FAKE[:-1] + ", reduction='sum')"),
            ("real_loss is not reduced", "is not one number", REAL, REAL[:-1] + ", reduction='none')"),
            ("real_loss squeezes a batch of one", "real_loss of 1 float32 logits", REAL,
             "F.binary_cross_entropy_with_logits(D_out.squeeze(), torch.ones(len(D_out)))"),
            ("fake_loss is a float", "is not one number", FAKE, FAKE + ".item()"),
            ("fake_loss is detached", "has no gradient", FAKE, FAKE.replace("(D_out,", "(D_out.detach(),")),
            ("real_loss loses digits under autocast", "logits under autocast is", REAL,
             "F.softplus(-D_out @ torch.ones(1, 1)).mean()"),
            ("real_loss overflows", "take the binary cross-entropy", REAL, "-torch.log(torch.sigmoid(D_out)).mean()"),
            ("real_loss has a smoothed label", "take the binary cross-entropy", REAL,
             REAL.replace("label", "0.9 * label")),
            ("fake_loss is a mean square", "take the binary cross-entropy", FAKE, "(D_out ** 2).mean()"),
            ("real_loss drops a part of its gradient", "wrong gradient", REAL,
             REAL.replace("(D_out,", "(D_out * 2 - D_out.detach(),")),
        ],
        "test_scale": [
            ("scale does nothing", "must take 0 to -1 and 1 to 1", "return x * (high - low) + low", "return x"),
            ("scale ignores feature_range", "feature_range (0, 5)", "low, high = feature_range", "low, high = -1, 1"),
            ("scale stretches each batch", "whatever else is in the batch", "return x *",
             "x = (x - x.min()) / (x.max() - x.min()); return x *"),
            ("scale forgets the offset", "must take 0 to -1", "return x * (high - low) + low",
             "return x * (high - low)"),
            ("scale works in place", "changes the images", "return x * (high - low) + low",
             "return x.mul_(high - low).add_(low)"),
            ("scale divides by 255 again", "must take 0 to -1 and 1 to 1", "return x *", "return x / 255 *"),
        ],
        "test_dataloader": [
            ("The loader does not shuffle", "same order in every epoch", "shuffle=True", "shuffle=False"),
            ("The loader shuffles once", "same order in every epoch", "shuffle=True",
             "sampler=torch.randperm(len(train)).tolist()"),
            ("The loader shuffles inside batches only", "same order in every epoch",
             "shuffle=True, drop_last=True, generator=order, collate_fn=batch",
             "drop_last=True, collate_fn=lambda indices: batch(indices)[torch.randperm(16)]"),
            ("The loader draws with replacement", "without replacement", "shuffle=True",
             "sampler=torch.utils.data.RandomSampler(train, True)"),
            ("collate_fn draws with replacement", "again while others are left out", "images[indices]",
             "images[torch.tensor(indices)[torch.randint(16, (16,))]]"),
            ("The loader leaves out a half", "drop none but", "shuffle=True",
             "sampler=torch.utils.data.RandomSampler(train, num_samples=65)"),
            ("collate_fn drops an image", "does collate_fn drop some", "images[indices]", "images[indices[1:]]"),
            ("The loader gives bytes", "torch.uint8", "images[indices].float() / 255", "images[indices]"),
            ("The loader gives 0 to 255", "must give images in [0, 1]", ".float() / 255", ".float()"),
            ("The loader gives -1 to 1", "must give images in [0, 1]", ".float() / 255", ".float() / 127.5 - 1"),
            ("The loader divides twice", "must give images in [0, 1]", ".float() / 255", ".float() / 255 / 255"),
            ("The loader puts channels last", "(batch, 3, height, width)", "images[indices]",
             "images.permute(0, 2, 3, 1)[indices]"),
            ("The loader fails", "The loader fails with IndexError", "images[indices]",
             "images[[i + 1 for i in indices]]"),
        ],
        "test_training_steps": [
            ("D's step does not detach the fakes", "leaves gradients on the generator", "fake_images.detach()",
             "fake_images"),
            ("D's step uses no real images", "does not use the real images", D_LOSS, "d_loss = fake_loss(fake_out)"),
            ("D's step uses no fake images", "does not use the fake images", D_LOSS, "d_loss = real_loss(real_out)"),
            ("D's step has the labels swapped", "moves D the wrong way", D_LOSS,
             "d_loss = fake_loss(real_out) + real_loss(fake_out)"),
            ("D's step goes uphill", "moves D the wrong way", "d_loss.backward()", "(-d_loss).backward()"),
            ("D's step adds up gradients", "discriminator_step adds up the gradients", "d_optimizer.zero_grad()",
             "pass"),
            ("D's step forgets the optimizer", "discriminator_step does not change", "d_optimizer.step()", "pass"),
            ("D's step moves G too", "changes the generator", "d_optimizer.step()",
             "d_optimizer.step(); [node.variable.data.add_(1) for node in tests.graph_nodes(fake_images) "
             "if hasattr(node, 'variable')]"),
            ("G's step goes uphill", "generator_step moves G the wrong way", "g_loss.backward()",
             "(-g_loss).backward()"),
            ("G's step uses fake_loss", "generator_step moves G the wrong way", G_LOSS, "g_loss = fake_loss(fake_out)"),
            ("G's step minimises log(1 - D)", "hardly moves G", G_LOSS, "g_loss = -fake_loss(fake_out)"),
            ("G's step leaves D frozen", "leaves the discriminator frozen", "D.requires_grad_(True)", "pass"),
            ("G's step leaves gradients on D", "leaves gradients on the discriminator", "D.requires_grad_(False)",
             "pass"),
            ("G's step changes D", "changes the discriminator", "g_optimizer.step()",
             "g_optimizer.step(); [p.data.add_(1) for p in D.parameters()]"),
            ("G's step leaves D in eval mode", "in another mode", "D.requires_grad_(False)",
             "D.requires_grad_(False).eval()"),
            ("G's step detaches the fakes", "generator_step fails", "D(augmented(fake_images))",
             "D(augmented(fake_images.detach()))"),
            ("G's step adds up gradients", "generator_step adds up the gradients", "g_optimizer.zero_grad()", "pass"),
            ("G's step forgets the optimizer", "generator_step does not change", "g_optimizer.step()", "pass"),
        ],
    }.items():
        for title, sentence, old, new in rows:
            yield Mutant(title, test, sentence, old, new)


MUTANTS = list(mutants())


class ConvolutionsOnly(nn.Module):
    """A discriminator without a linear layer, with spectral normalisation."""

    def __init__(self, width):
        super().__init__()
        self.stages = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 4, 2, 1)) for a, b in
                                    ((3, width), (width, 2 * width), (2 * width, 4 * width)))
        self.verdict = spectral_norm(nn.Conv2d(4 * width, 1, 4))

    def forward(self, picture):
        for stage in self.stages:
            picture = F.leaky_relu(stage(picture), 0.1)
        return self.verdict(picture).view(-1, 1)


def dropout_discriminator(conv_dim):
    return nn.Sequential(
        nn.Conv2d(3, conv_dim, 5, 2, 2), nn.LeakyReLU(0.2, inplace=True), nn.Dropout2d(0.3),
        nn.Conv2d(conv_dim, 2 * conv_dim, 5, 2, 2), nn.InstanceNorm2d(2 * conv_dim, affine=True), nn.ELU(inplace=True),
        nn.Dropout(0.5), nn.Flatten(), nn.Linear(2 * conv_dim * 64, 1))


def deep_discriminator(conv_dim):
    layers = []
    for before, after in ((3, conv_dim), (conv_dim, 2 * conv_dim), (2 * conv_dim, 4 * conv_dim)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.SiLU(),
                   nn.Conv2d(after, after, 3, 1, 1), nn.GroupNorm(8, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * conv_dim, 32), nn.ReLU(),
                         nn.Linear(32, 1))


class Attention(nn.Module):
    """Self-attention whose factor starts at zero, as in SAGAN."""

    def __init__(self, channels):
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(channels, channels, 1, bias=False) for _ in range(3))
        self.factor = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        q, k, v = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        return x + self.factor * (v @ torch.softmax(q.transpose(1, 2) @ k, dim=1)).view_as(x)


def attention_discriminator(conv_dim):
    return nn.Sequential(
        nn.Conv2d(3, conv_dim, 4, 4, bias=False), nn.ReLU(), Attention(conv_dim),
        nn.Conv2d(conv_dim, conv_dim, 4, 4, bias=False), nn.BatchNorm2d(conv_dim), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * conv_dim, 1, bias=False))


def half_precision_discriminator(conv_dim):
    """Logits in bf16, as under autocast."""
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = definitions().Discriminator(conv_dim)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.network(x)
    return Half()


def plain_discriminator(conv_dim):
    """No normalisation, a bounded activation inside, features from one layer of stride 4."""
    return nn.Sequential(nn.Conv2d(3, conv_dim, 8, 4, 2), nn.Tanh(), nn.Conv2d(conv_dim, 1, 8), nn.Flatten())


class Upsampling(nn.Module):
    """A generator that enlarges by repetition and then convolves."""

    def __init__(self, latent, width):
        super().__init__()
        self.width, self.entry = width, nn.Linear(latent, 4 * width * 16, bias=False)
        self.body = nn.Sequential(
            nn.BatchNorm2d(4 * width), nn.Upsample(scale_factor=2), nn.Conv2d(4 * width, 2 * width, 3, padding=1),
            nn.InstanceNorm2d(2 * width), nn.ReLU(True), nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU(True), nn.Upsample(scale_factor=2),
            nn.Conv2d(width, 3, 3, padding=1), nn.Tanh())

    def forward(self, noise):
        return self.body(self.entry(noise).view(-1, 4 * self.width, 4, 4))


def convolutional_generator(z_size, conv_dim):
    """No linear layer, dropout, spectral normalisation."""
    return nn.Sequential(
        nn.Unflatten(1, (z_size, 1, 1)), nn.ConvTranspose2d(z_size, 4 * conv_dim, 4), nn.BatchNorm2d(4 * conv_dim),
        nn.ReLU(), nn.Dropout(0.5), spectral_norm(nn.ConvTranspose2d(4 * conv_dim, 2 * conv_dim, 4, 2, 1)), nn.ReLU(),
        nn.Dropout(0.5), nn.ConvTranspose2d(2 * conv_dim, conv_dim, 4, 2, 1), nn.GroupNorm(8, conv_dim), nn.LeakyReLU(),
        nn.ConvTranspose2d(conv_dim, 3, 4, 2, 1), nn.Tanh())


def shuffling_generator(z_size, conv_dim):
    """Deeper, with pixel shuffle, and a sigmoid that is stretched to [-1, 1]."""
    class Stretch(nn.Module):
        def forward(self, x):
            return 2 * torch.sigmoid(x) - 1
    layers = [nn.Linear(z_size, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, conv_dim * 16),
              nn.Unflatten(1, (conv_dim, 4, 4))]
    for _ in range(3):
        layers += [nn.Conv2d(conv_dim, 4 * conv_dim, 3, padding=1), nn.PixelShuffle(2), nn.BatchNorm2d(conv_dim),
                   nn.GELU()]
    return nn.Sequential(*layers, nn.Conv2d(conv_dim, 3, 1, bias=False), Stretch())


class Noisy(nn.Module):
    """A generator without normalisation that adds noise to its features, in eval mode too."""

    def __init__(self, z_size, conv_dim):
        super().__init__()
        self.first, self.second = nn.Linear(z_size, conv_dim * 64), nn.ConvTranspose2d(conv_dim, conv_dim, 4, 2, 1)
        self.last, self.strength = nn.ConvTranspose2d(conv_dim, 3, 4, 2, 1), nn.Parameter(torch.zeros(1))

    def forward(self, z):
        x = F.relu(self.first(z)).reshape(len(z), -1, 8, 8)
        x = F.relu(self.second(x + self.strength * torch.randn_like(x)))
        return self.last(x).tanh()


def init_by_name(m):
    """The style of the DCGAN tutorials, which draw batch normalisation's scale around 1."""
    name = m.__class__.__name__
    if "Conv" in name or name == "Linear":
        m.weight.data.normal_(0.0, 0.02)
        if getattr(m, "bias", None) is not None:
            m.bias.data.fill_(0)
    elif "BatchNorm" in name:
        nn.init.normal_(m.weight.data, 1.0, 0.02)
        nn.init.constant_(m.bias.data, 0)


def real_by_module(D_out, smooth=False):
    labels = torch.ones(D_out.size(0)) * (0.9 if smooth else 1)
    return nn.BCEWithLogitsLoss()(D_out.view(-1).float(), labels)


def scale_by_lerp(x, feature_range=(-1, 1)):
    return torch.lerp(torch.full_like(x, feature_range[0]), torch.full_like(x, feature_range[1]), x)


def labelled_loader(count=100, **options):
    images = faces(count).float() / 255
    return DataLoader(TensorDataset(images, torch.zeros(count)), options.pop("batch_size", 16), shuffle=True, **options)


class Own:
    """A loader that is no DataLoader: random order of images, in batches of 10."""

    def __init__(self, images, replacement=False, epochs=None, length=None):
        self.images, self.replacement, self.epochs = images, replacement, epochs
        self.length = length or len(images) // 10

    def __len__(self):
        return self.length

    def __iter__(self):
        if self.epochs is not None:
            self.epochs -= 1
            if self.epochs < 0:
                return
        count = len(self.images)
        order = torch.randint(count, (count,)) if self.replacement else torch.randperm(count)
        for part in order[:count // 10 * 10].split(10):
            yield self.images[part]


def patient_discriminator_step(D, d_optimizer, real_images, fake_images):
    """One pass over real and fake images together, gradients cleared at the end."""
    out = D(torch.cat([real_images, fake_images.detach()])).float()
    real, fake = out.split([len(real_images), len(fake_images)])
    loss = F.softplus(-real).mean() / 2 + F.softplus(fake).mean() / 2
    loss.backward()
    d_optimizer.step()
    d_optimizer.zero_grad()
    return loss.item()


def careful_generator_step(D, G, g_optimizer, fake_images):
    """D is never frozen; only G's gradients are asked for."""
    g_optimizer.zero_grad(set_to_none=False)
    loss = F.softplus(-D(fake_images).float()).mean()
    loss.backward(inputs=list(G.parameters()))
    g_optimizer.step()
    return loss


def clearing_generator_step(D, G, g_optimizer, fake_images):
    """D gets gradients, which are cleared before the step ends."""
    g_optimizer.zero_grad()
    F.binary_cross_entropy_with_logits(D(fake_images).float(), torch.ones(len(fake_images), 1)).backward()
    g_optimizer.step()
    D.zero_grad()


D, G = ConvolutionsOnly, Upsampling
OWN_IMAGES = faces(203).float() / 255
VARIANTS = {
    "test_discriminator": {f.__name__: (f,) for f in (
        ConvolutionsOnly, dropout_discriminator, deep_discriminator, attention_discriminator,
        half_precision_discriminator, plain_discriminator)},
    "test_generator": {f.__name__: (f,) for f in (Upsampling, convolutional_generator, shuffling_generator, Noisy)},
    "test_weights_init": {"init_by_name": (init_by_name,)},
    "test_losses": {
        "by module": (real_by_module, lambda out: nn.BCEWithLogitsLoss()(out, torch.zeros_like(out))),
        "by softplus": (lambda out: F.softplus(-out).mean(), lambda out: -F.logsigmoid(-out.squeeze()).mean())},
    "test_scale": {"lerp": (scale_by_lerp,)},
    "test_dataloader": {
        "labels": (labelled_loader(),), "labels, dropped": (labelled_loader(drop_last=True),),
        "one batch": (labelled_loader(16),), "batches of one": (labelled_loader(20, batch_size=1),),
        "all in one": (labelled_loader(20, batch_size=64),), "seven images": (labelled_loader(7),),
        "own": (Own(OWN_IMAGES),), "own, each image twice": (Own(torch.cat([OWN_IMAGES] * 2)),),
        "own, all images equal": (Own(OWN_IMAGES[:1].expand(203, 3, 8, 8)),),
        "large": (DataLoader(range(10 ** 5), 100, shuffle=True,
                             collate_fn=lambda i: torch.rand(100, 1, 1, 1).expand(100, 3, 64, 64)),)},
    "test_training_steps": {
        "patient, careful": (patient_discriminator_step, careful_generator_step, D, G),
        "patient, clearing": (patient_discriminator_step, clearing_generator_step, dropout_discriminator,
                              convolutional_generator)},
}
LOADERS = {
    "with replacement": (lambda: Own(OWN_IMAGES, replacement=True), "again while others are left out"),
    "one epoch only": (lambda: Own(OWN_IMAGES, epochs=1), "nothing in its second epoch"),
    "wrong length": (lambda: Own(OWN_IMAGES, length=30), "len(loader) is 30, but an epoch has 20 batches"),
    "empty": (lambda: DataLoader([], 4), "has no batch"),
    "no length": (lambda: iter([OWN_IMAGES[:10]]), "len(loader) fails with TypeError"),
    "odd batches": (lambda: [OWN_IMAGES[:10], OWN_IMAGES[10:16], OWN_IMAGES[16:26]], "differ in size"),
    "lists": (lambda: [[[0.0, 1.0]]], "A batch is a list"),
}


def sentence_of(test, arguments):
    """What test says about wrong definitions, or None if it accepts them."""
    try:
        getattr(tests, test)(*arguments)
    except AssertionError as error:
        return str(error)
    return None


@pytest.fixture(params=SEEDS)
def seed(request, monkeypatch):
    monkeypatch.setattr(tests, "SEED", request.param)
    return request.param


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.title)
def test_mutant_is_rejected(mutant, seed):
    module = definitions(mutant.old, mutant.new)
    module.seed = seed
    sentence = sentence_of(mutant.test, ARGUMENTS[mutant.test](module))
    assert sentence is not None and mutant.sentence in sentence
    assert sentence.endswith((".", "?")) and "\n" not in sentence and "tensor(" not in sentence and len(sentence) < 320


@pytest.mark.parametrize("name", LOADERS)
def test_wrong_loader_is_rejected(name, seed):
    make, fragment = LOADERS[name]
    assert fragment in (sentence_of("test_dataloader", (make(),)) or "")


@pytest.mark.parametrize("test, name", [(test, name) for test in VARIANTS for name in VARIANTS[test]])
def test_variant_is_accepted(test, name, seed, capsys):
    state = torch.get_rng_state()
    getattr(tests, test)(*VARIANTS[test][name])
    assert capsys.readouterr() == ("Tests Passed\n", "")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("test", ARGUMENTS)
def test_notebook_is_accepted(test, seed, capsys):
    module = definitions()
    module.seed = seed
    arguments = ARGUMENTS[test](module)
    state = torch.get_rng_state()
    getattr(tests, test)(*arguments)
    assert capsys.readouterr() == ("Tests Passed\n", "")
    assert torch.equal(torch.get_rng_state(), state)


def test_order_of_the_loader_is_kept():
    """What comes first in training must not depend on whether the loader was tested."""
    tested, untested = (definitions().get_dataloader(16, 8)[0] for _ in range(2))
    tests.test_dataloader(tested)
    assert all(torch.equal(a, b) for a, b in zip(tested, untested))


if __name__ == "__main__":
    print("| wrong definition | rejected by | with the sentence |\n|---|---|---|")
    for mutant in MUTANTS:
        said = sentence_of(mutant.test, ARGUMENTS[mutant.test](definitions(mutant.old, mutant.new)))
        print(f"| {mutant.title} | `{mutant.test}` | {said or '**not rejected**'} |".replace("\n", " "))
