"""A run as one picture that changes while it trains."""
import contextlib
import io
import time

import numpy as np
from IPython.display import Image, display
from matplotlib.figure import Figure

import helpers

from . import ranks


def picture(images, columns):
    """A PNG, always of the same size: images as a grid of four columns beside the course of columns, {g_loss, d_loss,
    real_accuracy, fake_accuracy: one value a step}. Each point is the mean of a hundredth of the steps."""
    figure, count = Figure(figsize=(11.5, 3.4), dpi=90), len(columns["d_loss"])
    faces, losses, shares = figure.subplots(1, 3, width_ratios=(1, 1.45, 1.45))
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.16, top=0.9, wspace=0.2)
    faces.imshow(helpers.grid(images, 4), interpolation="nearest")
    faces.set_axis_off()
    steps = np.array_split(np.arange(count), min(count, 100))
    x = [part.mean() + 1 for part in steps]
    for name, axis, label, color in (
            ("d_loss", losses, "discriminator", "C0"), ("g_loss", losses, "generator", "C1"),
            ("real_accuracy", shares, "real", "C2"), ("fake_accuracy", shares, "generated", "C4")):
        axis.plot(x, [columns[name][part].mean() for part in steps], color=color, label=label)
    faces.set_title(f"Faces after step {count:,}")
    losses.set(title="Losses", xlabel="step", ylabel="cross-entropy")
    shares.set(title="Images that D judges rightly, share", xlabel="step", ylim=(0, 1.02))
    for axis, corner in ((losses, "upper right"), (shares, "lower left")):  # where no curve is
        axis.legend(loc=corner, fontsize="small")
        axis.locator_params(nbins=5)
    file = io.BytesIO()
    figure.savefig(file, format="png", pil_kwargs={"compress_level": 1})
    return file.getvalue()


@contextlib.contextmanager
def view(content, seconds=2.0, share=0.02):
    """Inside, the yielded function shows the picture of content(), (images, columns), in place of the one before.

    It may be called at every step: it draws at most once in so many seconds, and so rarely that drawing takes at most
    that share of the time. At the end it draws once more. content must leave the random state as it is."""
    handle, due = None, 0.0

    def show(last=False):
        nonlocal handle, due
        start = time.perf_counter()
        if ranks.rank or start < due and not last:
            return
        images, columns = content()
        if not columns:  # stopped before the first step
            return
        drawn = Image(picture(images, columns))
        if handle is None:
            handle = display(drawn, display_id=True)
        else:
            handle.update(drawn)
        end = time.perf_counter()
        due = max(start + seconds, end + (end - start) * (1 / share - 1))

    yield show
    show(last=True)
