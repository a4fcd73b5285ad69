"""The inline tests must reject wrong definitions, each with the sentence meant for it, and accept all right ones."""
import copy
import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mutants import MUTANTS, REJECTED
from variants import VARIANTS, doubting_discriminator, faces

import helpers
import problem_unittests as tests
from plumbing import photos, story

DEFINING = [cell.source for cell in story.cells() if "definitions" in cell.metadata.get("tags", [])]
CHECKS = [cell.source for cell in story.cells()
          if all(part in cell.source for part in ("assert", "real_loss(")) and "copy." not in cell.source]
NAMES = {
    "test_discriminator": ("Discriminator",),
    "test_generator": ("Generator",),
    "test_weights_init": ("weights_init_normal",),
    "test_losses": ("real_loss", "fake_loss"),
    "test_scale": ("scale",),
    "test_training_steps": ("discriminator_step", "generator_step", "Discriminator", "Generator"),
}


@functools.cache
def definitions(old="", new=""):
    """The notebook's definitions, with old replaced by new in the one cell that has it, and faces() for a data set."""
    module = story.definitions()
    module.photos = SimpleNamespace(load_images=lambda data_dir, image_size: faces(), check_faces=photos.check_faces)
    if old:
        source, = [source for source in DEFINING if old in source]
        assert source.count(old) == 1 and old != new
        exec(source.replace(old, new), vars(module))
    return module


def arguments(test, seed, *change):
    """What test is given in the notebook, or after a change in its definitions."""
    module = definitions(*change)
    module.seed = seed
    if test == "test_dataloader":
        return module.get_dataloader(16, 8), 16
    return [getattr(module, name) for name in NAMES[test]]


def rejected(test, given):
    """The sentence with which test rejects what it is given."""
    with pytest.raises(AssertionError) as caught:
        getattr(tests, test)(*given)
    sentence = str(caught.value)
    assert sentence.endswith((".", "?")) and "\n" not in sentence and "tensor(" not in sentence and len(sentence) < 320
    return sentence


def accepted(test, given, capsys):
    """test must say one line about what it is given, and leave the random numbers as they are."""
    state = torch.get_rng_state()
    getattr(tests, test)(*given)
    assert capsys.readouterr() == ("Tests Passed\n", "")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture(params=range(5))
def seed(request, monkeypatch):
    monkeypatch.setattr(tests, "SEED", request.param)
    return request.param


@pytest.mark.parametrize("test, part, old, new", [
    pytest.param(test, *row, id=title) for test, rows in MUTANTS.items() for title, *row in rows])
def test_mutant_is_rejected(test, part, old, new, seed):
    assert part in rejected(test, arguments(test, seed, old, new))


@pytest.mark.parametrize("test, make, part", [
    pytest.param(test, *row, id=f"{test}, {name}") for test, rows in REJECTED.items() for name, row in rows.items()])
def test_wrong_definition_is_rejected(test, make, part, seed):
    assert part in rejected(test, make())


@pytest.mark.parametrize("test, given", [
    pytest.param(test, given, id=name) for test, rows in VARIANTS.items() for name, given in rows.items()])
def test_variant_is_accepted(test, given, seed, capsys):
    accepted(test, given, capsys)


@pytest.mark.parametrize("test, given", [
    pytest.param(test, given, id=name) for test in NAMES for name, given in VARIANTS[test].items()])
def test_variant_works_in_the_notebook(test, given):
    """What an inline test accepts must not fail in a later cell."""
    torch.manual_seed(0)
    module = story.definitions()
    vars(module).update(zip(NAMES[test], given))
    for source in CHECKS:
        exec(source, vars(module))
    D, G = module.build_network(8, 8, 100)
    assert ((D(G(module.random_z(16))).sigmoid() - 0.5).abs() < 0.45).all()
    d_optimizer, g_optimizer = (torch.optim.Adam(network.parameters(), fused=True) for network in (D, G))
    for step in (1, 2):
        row = module.play_step(D, G, d_optimizer, g_optimizer, torch.rand(8, 3, 32, 32))
        assert row.shape == (4,) and row.isfinite().all()
    G_average = copy.deepcopy(G)
    module.move_average(G_average, G, 1)
    assert module.generate(G_average, module.random_z(2)).shape == (2, 32, 32, 3)


@pytest.mark.parametrize("given", [pytest.param(g, id=name) for name, g in VARIANTS["test_dataloader"].items()])
def test_accepted_loaders_work_in_the_notebook(given):
    """Drawn in order, and from a state of their generator the same batches again."""
    for loader in given[0]:
        pictures = helpers.as_pictures(loader, 3)
        assert len(pictures) == 3 and pictures.dtype == np.uint8 and pictures.shape[3] == 3
        state = loader.generator.get_state()
        first = definitions().scale(next(iter(loader)))
        loader.generator.set_state(state)
        assert torch.equal(first, definitions().scale(next(iter(loader))))


def test_doubt_is_accepted_on_any_seed(monkeypatch):
    """Dropout on the logit: with five images, one pass in 32 has no gradient."""
    for seed in range(60):
        monkeypatch.setattr(tests, "SEED", seed)
        tests.test_discriminator(doubting_discriminator)


@pytest.mark.parametrize("test", [*NAMES, "test_dataloader"])
def test_notebook_is_accepted(test, seed, capsys):
    accepted(test, arguments(test, seed), capsys)


def test_order_of_the_loader_is_kept():
    """What comes first in training must not depend on whether the loader was tested."""
    tested, untested = (definitions().get_dataloader(16, 8) for _ in range(2))
    tests.test_dataloader(tested)
    assert all(torch.equal(a, b) for a, b in zip(tested[0], untested[0]))
