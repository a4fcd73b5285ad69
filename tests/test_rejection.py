"""The inline tests must reject wrong definitions, each with the sentence meant for it, and accept all right ones."""
import functools
from types import SimpleNamespace

import pytest
import torch
from mutants import MUTANTS
from variants import LOADERS, VARIANTS, faces

import problem_unittests as tests
from plumbing import story

DEFINING = [cell.source for cell in story.cells() if "definitions" in cell.metadata.get("tags", [])]
ARGUMENTS = {
    "test_discriminator": lambda m: (m.Discriminator,),
    "test_generator": lambda m: (m.Generator,),
    "test_weights_init": lambda m: (m.weights_init_normal,),
    "test_losses": lambda m: (m.real_loss, m.fake_loss),
    "test_scale": lambda m: (m.scale,),
    "test_dataloader": lambda m: m.get_dataloader(16, 8)[:1],
    "test_training_steps": lambda m: (m.discriminator_step, m.generator_step, m.Discriminator, m.Generator),
}


@functools.cache
def definitions(old="", new=""):
    """The notebook's definitions, with old replaced by new in the one cell that has it, and faces() for a data set."""
    module = story.definitions()
    module.photos = SimpleNamespace(load_images=lambda data_dir, image_size: faces())
    if old:
        source, = [source for source in DEFINING if old in source]
        assert source.count(old) == 1 and old != new
        exec(source.replace(old, new), vars(module))
    return module


def arguments(test, seed, *change):
    """What test is given in the notebook, or after a change in its definitions."""
    module = definitions(*change)
    module.seed = seed
    return ARGUMENTS[test](module)


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


@pytest.mark.parametrize("make, part", LOADERS.values(), ids=LOADERS)
def test_wrong_loader_is_rejected(make, part, seed):
    assert part in rejected("test_dataloader", (make(),))


@pytest.mark.parametrize("test, given", [
    pytest.param(test, given, id=name) for test, rows in VARIANTS.items() for name, given in rows.items()])
def test_variant_is_accepted(test, given, seed, capsys):
    accepted(test, given, capsys)


@pytest.mark.parametrize("test", ARGUMENTS)
def test_notebook_is_accepted(test, seed, capsys):
    accepted(test, arguments(test, seed), capsys)


def test_order_of_the_loader_is_kept():
    """What comes first in training must not depend on whether the loader was tested."""
    tested, untested = (definitions().get_dataloader(16, 8)[0] for _ in range(2))
    tests.test_dataloader(tested)
    assert all(torch.equal(a, b) for a, b in zip(tested, untested))
