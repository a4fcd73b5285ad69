"""plumbing/runs.py: the bookkeeping of steps and epochs."""
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import DEFAULTS

from plumbing import runs


def test_records_are_collected():
    records, recent = [[1.0, 2.0]], [torch.tensor([0.5, 1.0]), torch.tensor([0.25, 1.0])]
    for _ in range(2):
        runs.collect(recent, records, "checkpoint.pt")
        assert records == [[1.0, 2.0], [0.5, 1.0], [0.25, 1.0]] and recent == []


@pytest.mark.parametrize("recent, records, step, before, where", [
    ([[math.nan, 1.0]], [], 1, "none", "absent.pt, once an epoch is complete"),
    ([[math.inf, 1.0]], [[1.0, 1.0]], 2, "1, 1", "checkpoint.pt"),
    ([[0.125, 1.0], [0.5, math.nan]], [[1.0, 1.0]], 3, "0.125, 1", "checkpoint.pt")])
def test_losses_that_are_not_finite(recent, records, step, before, where):
    Path("checkpoint.pt").touch()
    with pytest.raises(FloatingPointError) as caught:
        runs.collect(list(map(torch.tensor, recent)), records, where.split(",")[0])
    assert str(caught.value) == (f"The losses are no longer finite at step {step} (before: {before}). "
                                 f"The last good state is in {where}; try lower learning rates.")


def test_what_is_said_of_an_epoch():
    records = [[0.7, 1.3, 0.6, 0.7]] * 10
    state = SimpleNamespace(records=[[9, 9, 9, 9]] + records, samples=[0, 0], seconds=[5.0, 2.0],
                            distances=[[90, 80], [70, 50.04]])
    assert runs.means(records) == pytest.approx(dict(zip(runs.COLUMNS, records[0])))
    assert runs.epoch_line(state, 12, 1, 64) == (
        "epoch  2/12  loss of D 1.300, of G 0.700  right on real 60%, fake 70%  distance 70.0, average 50.0  "
        "320 images/s")


@pytest.mark.parametrize("real, fake, won", [(0.99, 1.0, True), (1.0, 0.97, False), (0.0, 1.0, False)])
def test_winning_is_being_right_on_both(real, fake, won):
    records = [[9, 0.33, real, fake]]  # with smoothed labels the loss of a D that has won is 0.325
    assert runs.has_won(records) is won
    state = SimpleNamespace(records=records, samples=[0], seconds=[1.0], distances=[[1, 1]])
    assert ("D has won" in runs.epoch_line(state, 1, 0, 16)) is won


def test_first_and_last_tenth():
    records = [[step, 2 * step, 0.25, 1.0] for step in range(20)]
    assert runs.first_and_last(records)["g_loss"] == {"first tenth": 0.5, "last tenth": 18.5}
    assert list(runs.first_and_last(records[3:4])) == list(runs.COLUMNS)


def test_each_epoch_has_its_means_and_distances():
    records = [[step, 0.0, 0.5, 1.0] for step in range(5)]  # two epochs of two steps, and one in progress
    one, two = runs.by_epoch(SimpleNamespace(records=records, distances=[[90, 80], [70, 60]]), 2)
    assert [one["g_loss"], two["g_loss"]] == [0.5, 2.5] and list(one) == [*runs.COLUMNS, "swd_of_G", "swd"]
    assert [two["swd_of_G"], two["swd"]] == [70, 60]


def test_report():
    state = SimpleNamespace(parameters=DEFAULTS | {"batch_size": 8}, seconds=[3.0, 1.0], distances=[[90, 80]],
                            records=[[step, 0.0, 0.5, 1.0] for step in range(20)])
    found = runs.report(state, torch.device("cpu"), "fp32", 20)
    assert (found["steps"], found["train_seconds"], found["images_per_second"]) == (20, 4, 40)
    assert found["g_loss"] == 18.5 and found["epochs"][0]["g_loss"] == 9.5  # the last two steps; all of them
    assert json.loads(json.dumps(found))["device"] == "cpu" and found["versions"] == runs.versions()
