"""Judging faces, uint8 (count, height, width, 3): what the eye sees, as numbers, and what a generator can redraw."""
import copy
from http.client import HTTPException

import numpy as np
import torch
from torch.utils.data import Subset

import helpers


def compare(images, reference, radius):
    """images beside the first equally many of reference, as {name: number}.

    distance: sliced Wasserstein x1000. detail and contrast: the spread of the finest level of a Laplacian pyramid and of
    all pixels, over reference's. cast: the largest shift of a mean colour, in per cent of the range. close pairs: how
    often two images are within radius, over 1 in 10,000."""
    count = min(len(images), len(reference))
    a, b = (torch.from_numpy(x[:count]).permute(0, 3, 1, 2).float() / 255 for x in (images, reference))
    fine = [helpers.laplacian_pyramid(x)[0].std() for x in (a, b)]
    return {"distance": helpers.sliced_wasserstein(images[:count], reference[:count]),
            "detail": (fine[0] / fine[1]).item(), "contrast": (a.std() / b.std()).item(),
            "cast, %": 100 * (a - b).mean((0, 2, 3)).abs().max().item(),
            "close pairs": 10_000 * (helpers.pair_distances(images) < radius).double().mean().item()}


def summary(comparison, generated, held_out, radius):
    """A run's measures by name, from comparison ({name of a set: what compare gives}) and the pairs of its faces."""
    names = {"swd": "this run", "swd_of_G": "G, not its average", "swd_floor": "training faces",
             "swd_untrained": "untrained generator"}
    pairs = helpers.pair_distances(generated)
    return {key: comparison[name]["distance"] for key, name in names.items()} | {
        "close_pairs": int((pairs < radius).sum()), "close_pairs_expected": len(pairs) / 10_000,
        "diversity": pairs.mean().item(), "diversity_held_out": helpers.pair_distances(held_out).mean().item()}


def spoilt(images):
    """Copies of images, {what is wrong with them: images}: what a measure says to them tells what it is blind to."""
    x = images.astype(np.float32)
    copies = {"blurred": (x + np.roll(x, 1, 1) + np.roll(x, 1, 2) + np.roll(x, (1, 1), (1, 2))) / 4,
              "noisy": x + np.random.default_rng(0).normal(0, 12, x.shape),
              "tinted": x * [1.08, 1, 0.92],
              "half of them twice": np.concatenate([x[:len(x) // 2], x[:len(x) - len(x) // 2]])}
    return {name: copy.round().clip(0, 255).astype(np.uint8) for name, copy in copies.items()}


def inception_distances(a, b, device="cpu", **options):
    """{"fid": ..., "kid": ...} between two sets of images, by the package torch-fidelity.

    Fréchet (Heusel et al. 2017, eq. 6) and kernel distance (Bińkowski et al. 2018), 0 is equal, of what an Inception
    network trained on ImageNet sees. torch-fidelity scales the images to 299x299 as the first implementation does, and
    downloads the network once; options go to its calculate_metrics. Raises OSError if the download fails."""
    from torch_fidelity import calculate_metrics
    inputs = [Subset(torch.from_numpy(images).permute(0, 3, 1, 2), range(len(images))) for images in (a, b)]
    subset = min(1000, len(a), len(b))
    try:
        found = calculate_metrics(input1=inputs[0], input2=inputs[1], fid=True, kid=True, kid_subset_size=subset,
                                  cuda=torch.device(device).type == "cuda", cache=False, save_cpu_ram=True,
                                  verbose=False, **options)
    except (OSError, HTTPException) as error:
        raise OSError(f"FID and KID need a network that could not be downloaded ({' '.join(str(error).split())}); set "
                      "fid to false; with resume true nothing is trained again.") from error
    return {"fid": found["frechet_inception_distance"], "kid": found["kernel_inception_distance_mean"]}


def as_input(images, device):
    """Images as a discriminator takes them: float (count, 3, height, width) in [-1, 1] on device."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(device).float() / 127.5 - 1


def logits(D, images):
    """What D answers to each of images by itself, in eval mode: an array (count,), above 0 for real."""
    D = copy.deepcopy(D).eval()
    device = next(D.parameters()).device
    with torch.no_grad():
        return np.concatenate([D(as_input(part, device)).flatten().cpu().numpy()
                               for part in np.array_split(images, -(-len(images) // 256))])


def redraw(network, targets, z_size, steps=120, limit=1.0):
    """The images of network nearest to targets that a descent on z in [-limit, limit] finds (Webster et al. 2019).

    network takes z (count, z_size) to images in [-1, 1]; its weights stay as they are."""
    network = copy.deepcopy(network).requires_grad_(False)
    device = next(network.parameters()).device
    wanted = as_input(targets, device)
    z = torch.zeros(len(targets), z_size, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([z], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        (network(z) - wanted).square().sum().backward()
        optimizer.step()
        z.data.clamp_(-limit, limit)
    return helpers.to_uint8(network(z))


def recovery(network, sets, z_size):
    """How well network redraws each of sets, {name: images}: printed, and returned as {"recovery_" and name: mean rms}."""
    found = {}
    for name, targets in sets.items():
        errors = helpers.rms(targets, redraw(network, targets, z_size))
        found[f"recovery_{name.replace(' ', '_')}"] = float(errors.mean())
        print(f"{name}: redrawn to within {errors.mean():.3f}, standard error {errors.std() / len(errors) ** 0.5:.3f}")
    return found


def descent(network, targets, z_size):
    """Rows of images on the way of redraw to targets, {steps, range of z and mean rms that is left: images}."""
    rows = {}
    for steps, limit in ((5, 1), (20, 1), (120, 1), (120, 2)):
        images = redraw(network, targets, z_size, steps, limit)
        rows[f"{steps} steps, z within {limit}: {helpers.rms(targets, images).mean():.3f}"] = images
    return rows


def most_and_least(sets, values):
    """Rows of the eight images of each of sets, {name: images}, with the largest and the smallest of its values."""
    order = {name: values[name].argsort() for name in sets}
    return {f"{name}, {end}": images[order[name][part]] for name, images in sets.items()
            for end, part in (("most", slice(None, -9, -1)), ("least", slice(8)))}


def smoothness(images):
    """The correlation of neighbouring pixels: near 1 for pictures, near 0 for noise."""
    x = images.astype(np.float32)
    return float(np.corrcoef(x[:, :, 1:].ravel(), x[:, :, :-1].ravel())[0, 1])


def light(images):
    """The mean brightness in [0, 1] of the middle of each face."""
    size = images.shape[1]
    return images[:, 3 * size // 8:3 * size // 4, size // 4:3 * size // 4].mean(axis=(1, 2, 3)) / 255


def lean(images):
    """By how much the left half of each picture is lighter than the right, in [-1, 1]."""
    left, right = np.split(images.mean(axis=(1, 3)) / 255, 2, axis=1)
    return left.mean(axis=1) - right.mean(axis=1)


def beyond(values, data):
    """{"below": , "above": } the share of values in per cent beyond the lowest and the highest twentieth of data."""
    low, high = np.quantile(data, [0.05, 0.95])
    return {"below, %": 100 * float((values < low).mean()), "above, %": 100 * float((values > high).mean())}


def table(rows):
    """Rows, {name: {column: number}}, as Markdown."""
    columns = list(next(iter(rows.values())))
    def shown(number):
        digits = 3 if abs(number) < 1 else 2 if abs(number) < 10 else 1
        return f"{number:,}" if isinstance(number, int) else f"{number:.{digits}f}"

    lines = [f"| {name} | {' | '.join(shown(row[column]) for column in columns)} |" for name, row in rows.items()]
    return "\n".join([f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns), *lines])


def verdict(claims):
    """Print each of claims, {sentence: whether it holds}."""
    for sentence, holds in claims.items():
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {sentence}")
