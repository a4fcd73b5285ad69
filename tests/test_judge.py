"""plumbing/judge.py: each number moves with what it is named for, and stays for the rest."""
import zipfile
from unittest import mock
from urllib.error import URLError

import numpy as np
import pytest
import torch
from conftest import refused
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

import helpers
from plumbing import judge, photos
from plumbing.story import ROOT

with zipfile.ZipFile(ROOT / "processed_celeba_small.zip") as archive:
    EMBEDDED = np.stack([photos.decode(archive.open(name), 32) for name in archive.namelist()[:1600]])
FACES, OTHERS = np.split(EMBEDDED, 2)
RADIUS = helpers.close_radius(OTHERS)


def test_equal_faces_compare_equal():
    row = judge.compare(FACES, FACES, RADIUS)
    assert row["distance"] == 0 and row["detail"] == row["contrast"] == 1 and row["cast, %"] == 0


@pytest.mark.parametrize("fault, moved", [
    ("blurred", {"distance", "detail", "close pairs"}), ("noisy", {"distance", "detail"}), ("tinted", {"cast, %"}),
    ("half of them twice", {"close pairs"})])
def test_what_is_spoilt_moves_its_number(fault, moved):
    as_they_are = judge.compare(FACES, OTHERS, RADIUS)
    row = judge.compare(judge.spoilt(FACES)[fault], OTHERS, RADIUS)
    far = {"distance": row["distance"] > 1.3 * as_they_are["distance"], "detail": not 0.9 < row["detail"] < 1.1,
           "contrast": not 0.9 < row["contrast"] < 1.1, "cast, %": row["cast, %"] > 2, "close pairs": row["close pairs"] > 7}
    assert {name for name, is_far in far.items() if is_far} == moved


def test_summary():
    comparison = {name: {"distance": number} for number, name in enumerate(
        ("this run", "G, not its average", "training faces", "untrained generator"))}
    twins = np.concatenate([FACES, FACES[:10]])
    found = judge.summary(comparison, twins, FACES, RADIUS)
    assert [found[name] for name in ("swd", "swd_of_G", "swd_floor", "swd_untrained")] == [0, 1, 2, 3]
    assert 10 <= found["close_pairs"] < 100 and found["close_pairs_expected"] == 810 * 809 / 2 / 10_000
    assert found["diversity"] == pytest.approx(found["diversity_held_out"], rel=0.05)


def test_redraw_finds_what_a_network_can_draw():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 3 * 8 * 8), torch.nn.Unflatten(1, (3, 8, 8)), torch.nn.Tanh())
    own = helpers.to_uint8(network(2 * torch.rand(5, 4) - 1))
    before = [p.clone() for p in network.parameters()]
    others = np.random.default_rng(0).integers(0, 256, own.shape, np.uint8)
    assert helpers.rms(judge.redraw(network, own, 4), own).max() < 0.02
    assert helpers.rms(judge.redraw(network, others, 4), others).min() > 0.1
    assert all(map(torch.equal, network.parameters(), before)) and all(p.requires_grad for p in network.parameters())


def test_redraw_keeps_z_in_its_range():
    network = torch.nn.Sequential(torch.nn.Linear(4, 3 * 8 * 8, bias=False), torch.nn.Unflatten(1, (3, 8, 8)))
    torch.nn.init.constant_(network[0].weight, 0.2)  # z of 1.25 would draw white, pixels of 1
    white = np.full((2, 8, 8, 3), 255, np.uint8)
    narrow, wide = (judge.redraw(network, white, 4, limit=limit) for limit in (0.5, 2))
    assert (narrow == 178).all() and (wide >= 254).all()  # 4 * 0.2 * 0.5 = 0.4, as a pixel 178
    assert (judge.redraw(network, white, 4, steps=0) == 128).all()


def test_descent_comes_nearer():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 3 * 8 * 8), torch.nn.Unflatten(1, (3, 8, 8)), torch.nn.Tanh())
    own = helpers.to_uint8(network(2 * torch.rand(5, 4) - 1))
    errors = {name: helpers.rms(own, images).mean() for name, images in judge.descent(network, own, 4).items()}
    assert all(name.endswith(f": {error:.3f}") for name, error in errors.items())
    first, second, third, wider = errors.values()
    assert third < second < first and wider < 0.02


def test_most_and_least():
    values = np.arange(len(FACES)) % 100
    rows = judge.most_and_least({"faces": FACES[:100]}, {"faces": values[:100]})
    assert list(rows) == ["faces, most", "faces, least"]
    assert np.array_equal(rows["faces, most"], FACES[99:91:-1]) and np.array_equal(rows["faces, least"], FACES[:8])


def test_recovery(capsys):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 3 * 8 * 8), torch.nn.Unflatten(1, (3, 8, 8)), torch.nn.Tanh())
    own = helpers.to_uint8(network(2 * torch.rand(5, 4) - 1))
    found = judge.recovery(network, {"its own": own, "their negatives": 255 - own}, 4)
    assert list(found) == ["recovery_its_own", "recovery_their_negatives"]
    assert found["recovery_its_own"] < 0.02 < 0.1 < found["recovery_their_negatives"]
    assert capsys.readouterr().out.startswith(f"its own: redrawn to within {found['recovery_its_own']:.3f}, standard error")


def test_logits_are_of_each_face_by_itself():
    torch.manual_seed(0)
    D = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 32), torch.nn.BatchNorm2d(2), torch.nn.Flatten(), torch.nn.Linear(2, 1)).train()
    alone = np.concatenate([judge.logits(D, face[None]) for face in FACES[:3]])
    assert np.allclose(judge.logits(D, FACES[:300])[:3], alone, atol=1e-5) and D.training
    assert judge.logits(D, FACES[:300]).shape == (300,)


def test_smoothness_tells_pictures_from_noise():
    noise = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3))
    assert judge.smoothness(FACES) > 0.8 and abs(judge.smoothness(noise)) < 0.05


def test_light_lean_and_tails():
    dark, half = np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 32, 32, 3), np.uint8)
    half[:, :, :16] = 255
    assert judge.light(dark) == 0 and judge.light(255 - dark) == 1
    assert judge.lean(dark) == 0 and judge.lean(half) == 1 and judge.lean(half[:, :, ::-1]) == -1
    assert judge.beyond(np.arange(100), np.arange(100)) == {"below, %": 5, "above, %": 5}


def test_table_and_verdict(capsys):
    assert judge.table({"a": {"x": 1.23456, "y": 1234}, "b": {"x": 0, "y": 5}}) == (
        "| | x | y |\n|---|---|---|\n| a | 1.23 | 1,234 |\n| b | 0 | 5 |")
    judge.verdict({"it is so": True, "it is otherwise": np.bool_(False)})
    assert capsys.readouterr().out == "holds: it is so\nDOES NOT HOLD: it is otherwise\n"


class Pixels(FeatureExtractorBase):
    """Two numbers an image in place of Inception's: its mean brightness, and that of its upper left pixel."""

    seen = []

    def __init__(self, name, features_list, **options):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return "2",

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "2"

    def forward(self, images):
        self.seen.append(images)
        x = images.double() / 255
        return torch.stack([x.mean((1, 2, 3)), x[:, :, 0, 0].mean(1)], dim=1),


def test_inception_distances_through_another_extractor():
    a = np.random.default_rng(0).integers(0, 200, (300, 8, 8, 3), np.uint8)
    register_feature_extractor("pixels", Pixels)
    same = judge.inception_distances(a, a, feature_extractor="pixels")
    assert same["fid"] == pytest.approx(0, abs=1e-6) and same["kid"] == pytest.approx(0, abs=1e-3)
    brighter = judge.inception_distances(a, a + 51, feature_extractor="pixels")
    assert brighter["fid"] == pytest.approx(2 * 0.2**2, rel=1e-3)  # same covariance: the distance of the means, squared
    assert Pixels.seen[0].dtype == torch.uint8 and Pixels.seen[0].shape[1:] == (3, 8, 8)
    assert torch.equal(Pixels.seen[0][:5].permute(0, 2, 3, 1), torch.from_numpy(a[:5]))


def test_inception_distances_without_their_network(monkeypatch):
    monkeypatch.setattr("torch_fidelity.calculate_metrics", mock.Mock(side_effect=URLError("no route")))
    a = np.zeros((4, 8, 8, 3), np.uint8)
    refused(lambda: judge.inception_distances(a, a), "FID and KID need a network that could not be downloaded", "no route")
