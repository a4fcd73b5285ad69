"""plumbing/live.py: few pictures, one place, nothing left behind."""
import io
from unittest import mock

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from conftest import pixels
from nbclient import NotebookClient
from PIL import Image

from plumbing import live, runs
from plumbing.story import ROOT


def columns(count):
    return {name: np.linspace(0, 1, count) for name in runs.COLUMNS}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless moved, and a picture that takes clock.cost; clock.drawn holds the times."""
    clock = mock.Mock(now=100.0, cost=0.01, drawn=[])

    def picture(images, columns):
        clock.drawn.append(clock.now)
        clock.now += clock.cost
        return b""

    monkeypatch.setattr(live, "time", mock.Mock(perf_counter=lambda: clock.now))
    monkeypatch.setattr(live, "picture", picture)
    monkeypatch.setattr(live, "Image", mock.Mock())
    clock.handle = mock.Mock()
    clock.display = mock.Mock(return_value=clock.handle)
    monkeypatch.setattr(live, "display", clock.display)
    return clock


def test_a_thousand_calls_in_a_second_draw_twice(clock):
    with live.view(lambda: (None, "columns")) as show:
        for _ in range(1000):
            show()
            clock.now += 0.001
    assert len(clock.drawn) == 2  # the first and the last
    assert clock.display.call_count == 1 and clock.handle.update.call_count == 1


def test_nothing_to_show_and_nobody_to_show_it(clock, monkeypatch):
    with live.view(lambda: (None, runs.columns([]))) as show:  # stopped before the first step
        show()
    monkeypatch.setattr(live.ranks, "rank", 1)
    with live.view(lambda: (None, "columns")) as show:
        show()
    assert not clock.drawn and not clock.display.called


@pytest.mark.parametrize("cost", [0.001, 0.3])
def test_drawing_keeps_to_its_share_of_the_time(clock, cost):
    clock.cost = cost
    with live.view(lambda: (None, "columns")) as show:
        while clock.now < 400:
            show()
            clock.now += 0.01
    between = np.diff(clock.drawn[:-1])
    assert between.min() >= max(2, 50 * cost) - 1e-6 and between.max() < max(2, 50 * cost) + 0.02
    assert len(between) > 15


def test_a_picture_has_one_size_and_leaves_nothing():
    numbers, state = np.random.get_state()[1].copy(), torch.get_rng_state()
    drawn = [Image.open(io.BytesIO(live.picture(pixels(16, size, size, 3), columns(count))))
             for size, count in ((32, 1), (32, 7000), (64, 150))]
    assert {image.size for image in drawn} == {(1035, 306)} and not plt.get_fignums()
    assert torch.equal(torch.get_rng_state(), state) and np.array_equal(np.random.get_state()[1], numbers)


def test_a_fault_is_not_hidden_by_a_last_picture(clock):
    with pytest.raises(FloatingPointError), live.view(lambda: 1 / 0):
        raise FloatingPointError


def test_a_notebook_holds_one_output():
    source = """%matplotlib inline
import numpy as np
from plumbing import live, runs
content = np.zeros((16, 32, 32, 3), np.uint8), {name: np.ones(9) for name in runs.COLUMNS}
with live.view(lambda: content, seconds=0, share=1) as show:
    for _ in range(4):
        show()"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, resources={"metadata": {"path": ROOT}}).execute()
    output, = notebook.cells[0].outputs
    assert output.output_type == "display_data" and set(output.data) == {"image/png", "text/plain"}
    assert output.data["text/plain"] == "<IPython.core.display.Image object>"
