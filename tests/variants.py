"""Right definitions that the inline tests must accept, written in other ways than the notebook's."""
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import DataLoader, RandomSampler

from plumbing import story


def faces(count=150, copies=6):
    """Random images, the last of them copies of the first."""
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[count - copies:] = images[:copies].clone()
    return images


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


def doubting_discriminator(conv_dim):
    """Dropout on the logit itself, so that a small batch may get no gradient."""
    return nn.Sequential(nn.Conv2d(3, conv_dim, 4, 4), nn.ReLU(), nn.Conv2d(conv_dim, conv_dim, 4, 4),
                         nn.BatchNorm2d(conv_dim), nn.ReLU(), nn.Flatten(), nn.Linear(4 * conv_dim, 1), nn.Dropout(0.5))


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
            self.network = story.definitions().Discriminator(conv_dim)

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


def init_weights_only(m):
    """The style of most solutions, which leaves the biases as PyTorch draws them."""
    if hasattr(m, "weight") and ("Conv" in type(m).__name__ or "Linear" in type(m).__name__):
        m.weight.data.normal_(0.0, 0.02)


def init_all(m):
    """Biases drawn like the weights."""
    if isinstance(m, (nn.modules.conv._ConvNd, nn.Linear)):
        for parameter in m.parameters():
            nn.init.normal_(parameter, 0.0, 0.02)


def real_by_module(D_out, smooth=False):
    """The course's: any second argument asks for a label of 0.9."""
    labels = torch.ones(D_out.size(0)) * (0.9 if smooth else 1)
    return nn.BCEWithLogitsLoss()(D_out.view(-1).float(), labels)


def real_by_softplus(out, label=1):
    return (label * F.softplus(-out) + (1 - label) * F.softplus(out)).mean()


def real_by_column(D_out, label=1):
    return F.binary_cross_entropy_with_logits(D_out.float(), torch.ones(len(D_out), 1) * label)


def scale_by_lerp(x, feature_range=(-1, 1)):
    return torch.lerp(torch.full_like(x, feature_range[0]), torch.full_like(x, feature_range[1]), x)


def loaders(images, batch_size=16, **options):
    """Two DataLoaders over a list of indices, of the same images."""
    given = {"generator": torch.Generator(), "collate_fn": lambda indices: images[indices]} | options
    if "batch_sampler" not in given:
        given |= {"batch_size": batch_size, "shuffle": "sampler" not in given}
    return (DataLoader(list(range(len(images))), **given),) * 2


def patient_discriminator_step(D, d_optimizer, real_images, fake_images):
    """One pass over real and fake images together, gradients cleared at the end."""
    out = D(torch.cat([real_images, fake_images.detach()])).float()
    real, fake = out.split([len(real_images), len(fake_images)])
    loss = F.softplus(-real).mean() / 2 + F.softplus(fake).mean() / 2
    loss.backward()
    d_optimizer.step()
    d_optimizer.zero_grad()
    return torch.tensor([loss.item(), 0.5, 0.5])


def textbook_discriminator_step(D, d_optimizer, real_images, fake_images):
    D.zero_grad()
    F.softplus(-D(real_images)).mean().backward()
    F.softplus(D(fake_images.detach())).mean().backward()
    d_optimizer.step()
    return torch.zeros(3)


def textbook_generator_step(D, G, g_optimizer, fake_images):
    """D gets gradients, which stay."""
    g_optimizer.zero_grad()
    F.softplus(-D(fake_images)).mean().backward()
    g_optimizer.step()
    return torch.zeros(())


def careful_generator_step(D, G, g_optimizer, fake_images):
    """D is never frozen; only G's gradients are asked for."""
    g_optimizer.zero_grad(set_to_none=False)
    loss = F.softplus(-D(fake_images).float()).mean()
    loss.backward(inputs=list(G.parameters()))
    g_optimizer.step()
    return loss


def clearing_generator_step(D, G, g_optimizer, fake_images):
    """D gets gradients, which are cleared before the step ends."""
    loss = textbook_generator_step(D, G, g_optimizer, fake_images)
    D.zero_grad()
    return loss


def square_discriminator_step(D, d_optimizer, real_images, fake_images):
    """Least squares, as in LSGAN."""
    d_optimizer.zero_grad()
    loss = ((D(real_images) - 1) ** 2).mean() + (D(fake_images.detach()) ** 2).mean()
    loss.backward()
    d_optimizer.step()
    return torch.stack([loss.detach()] * 3)


def square_generator_step(D, G, g_optimizer, fake_images):
    g_optimizer.zero_grad()
    ((D(fake_images) - 1) ** 2).mean().backward()
    g_optimizer.step()
    return torch.zeros(())


OWN_IMAGES, ORDER = faces(203).float() / 255, torch.Generator()
VARIANTS = {
    "test_discriminator": {f.__name__: (f,) for f in (
        ConvolutionsOnly, dropout_discriminator, doubting_discriminator, deep_discriminator, attention_discriminator,
        half_precision_discriminator, plain_discriminator)},
    "test_generator": {f.__name__: (f,) for f in (Upsampling, convolutional_generator, shuffling_generator, Noisy)},
    "test_weights_init": {f.__name__: (f,) for f in (init_by_name, init_weights_only, init_all)},
    "test_losses": {
        "by module": (real_by_module, lambda out: nn.BCEWithLogitsLoss()(out, torch.zeros_like(out))),
        "by softplus": (real_by_softplus, lambda out: -F.logsigmoid(-out.squeeze()).mean()),
        "by column": (real_by_column, lambda out: real_by_column(out, 0))},
    "test_scale": {"lerp": (scale_by_lerp,)},
    "test_dataloader": {
        "last batch kept": (loaders(OWN_IMAGES), 16), "last batch dropped": (loaders(OWN_IMAGES, drop_last=True), 16),
        "one batch": (loaders(OWN_IMAGES[:16]), 16), "batches of one": (loaders(OWN_IMAGES[:20], 1), 1),
        "all in one": (loaders(OWN_IMAGES[:20], 64), 64), "seven images": (loaders(OWN_IMAGES[:7]), 16),
        "each image twice": (loaders(torch.cat([OWN_IMAGES] * 2)),),
        "all images equal": (loaders(OWN_IMAGES[:1].expand(203, 3, 8, 8)),),
        "a list, and a sampler": ([*loaders(OWN_IMAGES, 10, generator=ORDER,
                                            sampler=RandomSampler(OWN_IMAGES, generator=ORDER))], 10),
        "large": (loaders(range(10 ** 5), 100, collate_fn=lambda i: (
            torch.as_tensor(i).view(-1, 1, 1, 1) / 10 ** 5).expand(len(i), 3, 64, 64)), 100)},
    "test_training_steps": {
        "patient, careful": (patient_discriminator_step, careful_generator_step, ConvolutionsOnly, Upsampling),
        "patient, clearing": (patient_discriminator_step, clearing_generator_step, dropout_discriminator,
                              convolutional_generator),
        "textbook": (textbook_discriminator_step, textbook_generator_step, doubting_discriminator, Noisy),
        "least squares": (square_discriminator_step, square_generator_step, plain_discriminator, Upsampling)},
}
