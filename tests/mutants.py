"""Wrong definitions, under the inline test that must reject them, each with a part of the sentence meant for it.

A row of MUTANTS is a title, that part, and the right code with the wrong code in its place; one of REJECTED is a title,
what makes the arguments of the test, and that part."""
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from variants import (OWN_IMAGES, Upsampling, loaders, patient_discriminator_step, plain_discriminator,
                      textbook_discriminator_step, textbook_generator_step)

D_END, G_END = "return FC(x.flatten(start_dim=1))", "return torch.tanh(last(x))"
D_START, G_START = "*convs, FC = self.children()", "FC, *deconvs, last = self.children()"
REAL = "F.binary_cross_entropy_with_logits(D_out.float(), torch.full_like(D_out.float(), label))"
FAKE = "F.binary_cross_entropy_with_logits(D_out.float(), torch.zeros_like(D_out.float()))"
INIT_KINDS = "isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))"
D_LOSS = "d_loss = real_loss(real_out, 1 - label_smoothing) + fake_loss(fake_out)"
G_LOSS = "g_loss = real_loss(fake_out)"

MUTANTS = {
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
        ("D detaches after the convolutions", "gets no gradient", D_END, "return FC(x.detach().flatten(start_dim=1))"),
        ("D multiplies a parameter by zero", "parameter extra gets no gradient", D_START,
         "self.extra = getattr(self, 'extra', nn.Parameter(torch.ones(2, 2))); x = x + 0 * self.extra.sum(); "
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
        ("D uses view on channels_last images", "use reshape or flatten in place of view", D_END,
         "return FC(x.view(-1, x[0].numel()))"),
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
        ("G ends in a ReLU after its tanh", "not in a sigmoid or ReLU", G_END, "return F.relu(torch.tanh(last(x)))"),
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
        ("G uses view on channels_last images", "use reshape or flatten in place of view", G_END,
         "return torch.tanh(last(x)).view(len(z), -1).unflatten(1, (3, 32, 32))"),
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
        ("Initialisation expects a bias", "fails with", "if m.bias is not None:", "if True:"),
        ("Initialisation draws batch normalisation's scale", "overwrites the scale", INIT_KINDS,
         "hasattr(m, 'weight')"),
    ],
    "test_losses": [
        ("real_loss has label 0", "real_loss uses the other label", REAL, FAKE),
        ("fake_loss has label 1", "fake_loss uses the other label", FAKE, FAKE.replace("zeros", "ones")),
        ("real_loss takes probabilities", "real_loss of 3 float32 logits fails", REAL,
         "F.binary_cross_entropy(D_out, torch.ones_like(D_out))"),
        ("real_loss takes a sigmoid twice", "without a sigmoid", REAL, REAL.replace("(D_out.", "(D_out.sigmoid().")),
        ("fake_loss is computed from probabilities", "themselves, without a sigmoid, with label 0", FAKE,
         "F.binary_cross_entropy(D_out.sigmoid(), torch.zeros_like(D_out))"),
        ("fake_loss is a sum", "fake_loss is a sum", FAKE, FAKE[:-1] + ", reduction='sum')"),
        ("real_loss is not reduced", "is not one number", REAL, REAL[:-1] + ", reduction='none')"),
        ("real_loss squeezes a batch of one", "real_loss of 1 float32 logits", REAL,
         "F.binary_cross_entropy_with_logits(D_out.squeeze(), torch.ones(len(D_out)))"),
        ("fake_loss is a float", "is not one number", FAKE, FAKE + ".item()"),
        ("fake_loss is detached", "has no gradient", FAKE, FAKE.replace("(D_out.", "(D_out.detach().")),
        ("real_loss loses digits under autocast", "logits under autocast is", REAL,
         "F.softplus(-D_out @ torch.ones(1, 1)).mean()"),
        ("real_loss overflows", "asks for the binary cross-entropy", REAL, "-torch.log(torch.sigmoid(D_out)).mean()"),
        ("real_loss has a smoothed label", "with label 1 by default (the label argument asks for smoothing)", REAL,
         REAL.replace("label", "0.9 * label")),
        ("real_loss has no label", "real_loss needs a second argument, the label (default 1)",
         "def real_loss(D_out, label=1.0)", "label = 1\ndef real_loss(D_out)"),
        ("real_loss ignores its label", "real_loss with label 0.9 of 3 float32", REAL, REAL.replace("label", "1")),
        ("real_loss takes its label from 1", "with the label that it is given", "def real_loss(D_out, label=1.0):",
         "def real_loss(D_out, label=0):\n    label = 1 - label"),
        ("real_loss has a label by keyword only", "real_loss with label 0.9 of 3 float32 logits fails",
         "D_out, label=1.0", "D_out, *, label=1.0"),
        ("real_loss is a mean square", "with label 1 by default", REAL, "((D_out - label) ** 2).mean()"),
        ("fake_loss is a mean square", "asks for the binary cross-entropy", FAKE, "(D_out ** 2).mean()"),
        ("real_loss drops a part of its gradient", "wrong gradient", REAL,
         REAL.replace("(D_out.float(),", "(D_out * 2 - D_out.detach(),")),
    ],
    "test_scale": [
        ("scale does nothing", "must take 0 to -1 and 1 to 1", "return x * (high - low) + low", "return x"),
        ("scale ignores feature_range", "feature_range (0, 5)", "low, high = feature_range", "low, high = -1, 1"),
        ("scale stretches each batch", "whatever else is in the batch", "return x *",
         "x = (x - x.min()) / (x.max() - x.min()); return x *"),
        ("scale forgets the offset", "must take 0 to -1", "return x * (high - low) + low", "return x * (high - low)"),
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
         "drop_last=True, generator=order, collate_fn=lambda indices: batch(indices)[torch.randperm(len(indices))]"),
        ("The loader draws with replacement", "without replacement", "shuffle=True",
         "sampler=torch.utils.data.RandomSampler(train, True)"),
        ("collate_fn draws with replacement", "again while others are left out", "images[indices]",
         "images[indices[torch.randint(len(indices), (len(indices),))]]"),
        ("The loader leaves out a half", "drop none but", "shuffle=True",
         "sampler=torch.utils.data.RandomSampler(train, num_samples=65)"),
        ("collate_fn drops an image", "A batch has 15 images and not 16", "images[indices]", "images[indices[1:]]"),
        ("The loader gives bytes", "torch.uint8", ".float() / 255", ""),
        ("The loader gives 0 to 255", "must give images in [0, 1]", ".float() / 255", ".float()"),
        ("The loader gives -1 to 1", "must give images in [0, 1]", ".float() / 255", ".float() / 127.5 - 1"),
        ("The loader divides twice", "must give images in [0, 1]", ".float() / 255", ".float() / 255 / 255"),
        ("The loader puts channels last", "(batch, 3, height, width)", "images[indices]",
         "images.permute(0, 2, 3, 1)[indices]"),
        ("The loader fails", "The loader fails with IndexError", "images[indices]", "images[indices + 1]"),
    ],
    "test_training_steps": [
        ("D's step does not detach the fakes", "leaves gradients on the generator", "fake_images.detach()",
         "fake_images"),
        ("D's step uses no real images", "does not use the real images", D_LOSS, "d_loss = fake_loss(fake_out)"),
        ("D's step uses no fake images", "does not use the fake images", D_LOSS, "d_loss = real_loss(real_out)"),
        ("D's step has the labels swapped", "moves D the wrong way", D_LOSS,
         "d_loss = fake_loss(real_out) + real_loss(fake_out)"),
        ("D's step goes uphill", "moves D the wrong way", "d_loss.backward()", "(-d_loss).backward()"),
        ("D's step adds up gradients", "discriminator_step adds up the gradients", "d_optimizer.zero_grad()", "pass"),
        ("D's step forgets the optimizer", "discriminator_step does not change", "d_optimizer.step()", "pass"),
        ("D's step uses least squares the wrong way", "moves D the wrong way", D_LOSS,
         "d_loss = (real_out ** 2).mean() + ((fake_out - 1) ** 2).mean()"),
        ("D's step returns the loss", "must return what the notebook records, a tensor of three numbers",
         "return torch.stack([d_loss.detach(), ", "return d_loss.detach(); ([d_loss, "),
        ("D's step moves G too", "changes the generator", "d_optimizer.step()",
         "d_optimizer.step(); [node.variable.data.add_(1) for node in tests.graph_nodes(fake_images) "
         "if hasattr(node, 'variable')]"),
        ("G's step goes uphill", "generator_step moves G the wrong way", "g_loss.backward()", "(-g_loss).backward()"),
        ("G's step uses fake_loss", "generator_step moves G the wrong way", G_LOSS, "g_loss = fake_loss(fake_out)"),
        ("G's step minimises log(1 - D)", "hardly moves G", G_LOSS, "g_loss = -fake_loss(fake_out)"),
        ("G's step leaves D frozen", "leaves the discriminator frozen", "D.requires_grad_(True)", "pass"),
        ("G's step returns nothing", "a tensor of one number", "return g_loss.detach()", "pass"),
        ("G's step returns a float", "a tensor of one number", "return g_loss.detach()", "return g_loss.item()"),
        ("G's step changes D", "changes the discriminator", "g_optimizer.step()",
         "g_optimizer.step(); [p.data.add_(1) for p in D.parameters()]"),
        ("G's step leaves D in eval mode", "in another mode", "D.requires_grad_(False)",
         "D.requires_grad_(False).eval()"),
        ("G's step detaches the fakes", "generator_step fails", "D(augmented(fake_images))",
         "D(augmented(fake_images.detach()))"),
        ("G's step adds up gradients", "generator_step adds up the gradients", "g_optimizer.zero_grad()", "pass"),
        ("G's step forgets the optimizer", "generator_step does not change", "g_optimizer.step()", "pass"),
    ],
}


class Unfinished(nn.Module):
    """A template that nobody has filled in."""

    def __init__(self, *sizes):
        super().__init__()

    def forward(self, x):
        return None


class Listed(nn.Module):
    """A discriminator whose layers are hidden in a list."""

    def __init__(self, conv_dim):
        super().__init__()
        self.layers = [nn.Conv2d(3, conv_dim, 4, 4), nn.Tanh(), nn.Flatten(), nn.Linear(64 * conv_dim, 1)]

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Silent(Unfinished):
    """Layers, but no way through them yet."""

    def __init__(self, *sizes):
        super().__init__()
        self.first = nn.Linear(3, 3)


class Sampler:
    """203 indices, but not in every epoch, or not as many as it says."""

    def __init__(self, length=203, epochs=99):
        self.length, self.epochs = length, epochs

    def __iter__(self):
        self.epochs -= 1
        return iter(torch.randperm(203).tolist() if self.epochs >= 0 else [])

    def __len__(self):
        return self.length


LABELLED = TensorDataset(OWN_IMAGES, torch.zeros(203))
STEPS = textbook_discriminator_step, textbook_generator_step
REJECTED = {
    "test_discriminator": {
        "unfinished": (lambda: (Unfinished,), "has no parameters: give it layers"),
        "listed": (lambda: (Listed,), "in an nn.ModuleList"),
        "silent": (lambda: (Silent,), "returns a NoneType"),
        "none": (lambda: (lambda conv_dim: None,), "'NoneType' object has no attribute 'parameters'")},
    "test_generator": {"unfinished": (lambda: (Unfinished,), "The generator has no parameters: give it layers")},
    "test_losses": {"unfinished": (lambda: (lambda out, smooth=False: None, lambda out: None), "is not one number"),
                    "none": (lambda: (None, None), "Reading the arguments of real_loss fails with TypeError")},
    "test_dataloader": {
        "one loader": (lambda: (loaders(OWN_IMAGES)[0], 16), "must return two DataLoaders"),
        "no loader": (lambda: ([OWN_IMAGES, OWN_IMAGES], 16), "must return two DataLoaders"),
        "labels": (lambda: ((DataLoader(LABELLED, 16, True),) * 2, 16), "give the images at them, without labels"),
        "a list with labels": (lambda: ((DataLoader([*LABELLED], 16, True),) * 2, 16), "let dataset be a list of"),
        "faces held out without an order": (
            lambda: ((loaders(OWN_IMAGES)[0], DataLoader(LABELLED, 16)), 16), "let dataset be a list of"),
        "no generator": (lambda: (loaders(OWN_IMAGES, generator=None), 16), "Give the loader a generator"),
        "one epoch only": (lambda: (loaders(OWN_IMAGES, 10, sampler=Sampler(epochs=1)), 10), "nothing in its second"),
        "wrong length": (lambda: (loaders(OWN_IMAGES, 10, sampler=Sampler(50)), 10),
                         "len(loader) is 5, but an epoch has 6 batches or more"),
        "empty": (lambda: (loaders(OWN_IMAGES[:9], 10, drop_last=True), 10), "has no batch"),
        "odd batches": (lambda: (loaders(OWN_IMAGES, batch_sampler=[range(10), range(10, 16), range(16, 26)]),),
                        "differ in size"),
        "another batch_size": (lambda: (loaders(OWN_IMAGES), 32), "A batch has 16 images and not 32"),
        "too large a batch": (lambda: (loaders(OWN_IMAGES[:20], 64), 16), "A batch has 20 images and not 16")},
    "test_training_steps": {
        "unfinished D": (lambda: (*STEPS, Unfinished, Upsampling), "The discriminator has no parameters"),
        "unfinished G": (lambda: (*STEPS, plain_discriminator, Unfinished), "The generator has no parameters"),
        "silent G": (lambda: (*STEPS, plain_discriminator, Silent), "The generator returns a NoneType"),
        "gradients left and kept": (
            lambda: (patient_discriminator_step, textbook_generator_step, plain_discriminator, Upsampling),
            "adds the gradients that generator_step leaves on D")},
}
