"""demo/index.html in a headless Chromium: it draws what helpers.py draws, and can be used with and without a mouse."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import browser, served

import helpers
from plumbing import files
from plumbing.story import ROOT, definitions
from tools import demo

pytestmark = pytest.mark.browser
READY = "document.querySelector('main').hidden == false && document.querySelectorAll('[aria-busy=true]').length == 0"
STD = 3 ** -0.5  # of a number that is uniform in [-1, 1]


def keep(folder, z_size=20, image_size=32, **about):
    """An untrained generator in single precision, with running statistics that are not those of the start."""
    folder.mkdir()
    torch.manual_seed(0)
    G = definitions().Generator(z_size, 4, image_size)
    for _ in range(20):
        G(2 * torch.rand(16, z_size) - 1)
    about |= {"z_size": z_size, "conv_dim": 4, "image_size": image_size, "probe": helpers.probe_of(G.eval(), z_size)}
    for name, content in helpers.generator_files(G.state_dict(), about).items():
        files.write(folder / name, content)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A copy of the project's page and kept generator, with other generators beside it."""
    site = tmp_path_factory.mktemp("site")
    for name in ("demo/index.html", "assets/generator.json", "assets/generator.safetensors"):
        (site / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, site / name)
    keep(site / "small", directions=["<b>bold</b>"])
    keep(site / "wide", z_size=7, image_size=64)
    for name in ("built", "cut", "foreign", "halved"):
        demo.make_demo(site / "small", site / name)
    content = (site / "cut/generator.safetensors").read_bytes()
    (site / "cut/generator.safetensors").write_bytes(content[:len(content) // 2])
    about = json.loads((site / "foreign/generator.json").read_text())
    files.write_json(site / "foreign/generator.json", about | {"probe": [-value for value in about["probe"]]})
    files.write_json(site / "halved/generator.json", about | {"z_size": 10})
    return site


@pytest.fixture(scope="module")
def chromium(tmp_path_factory, site):
    with browser(tmp_path_factory.mktemp("profile")) as page, served(site) as address:
        page.address = address
        yield page


@pytest.fixture
def page(chromium):
    """The project's page, all faces drawn."""
    chromium.size(1200, 900)
    chromium.open(f"{chromium.address}/demo/")
    chromium.wait(READY)
    return chromium


def drawn(page, selector):
    """The pictures of the canvases that selector finds: int (count, size, size, 3)."""
    data = page.js(f"""[...document.querySelectorAll('{selector}')].map(canvas => [...canvas.getContext('2d')
        .getImageData(0, 0, canvas.width, canvas.height).data])""")
    size = round((len(data[0]) / 4) ** 0.5)
    return np.array(data).reshape(len(data), size, size, 4)[..., :3]


def same(pictures, faces):
    """Whether they are the same to within rounding."""
    return pictures.shape == faces.shape and np.abs(pictures - faces.astype(int)).max() <= 1


def random_z(count, z_size, seed=0):
    return 2 * torch.rand(count, z_size, generator=torch.Generator().manual_seed(seed)) - 1


def focus(page, identity):
    """Press Tab until the element is in focus, as someone without a mouse does."""
    for _ in range(60):
        if page.js("document.activeElement.id") == identity:
            assert page.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            return
        page.key("Tab")
    raise AssertionError(f"{identity} cannot be reached with the keyboard")


def test_it_draws_what_the_helper_draws(page):
    sample = helpers.load_generator(ROOT / "assets")
    assert same(drawn(page, "#grid canvas"), sample(16, seed=0)) and same(drawn(page, "#face"), sample(1, seed=0))
    page.js("seed.value = 4294967295, seed.onchange()")
    page.wait(READY)
    assert same(drawn(page, "#grid canvas"), sample(16, seed=4294967295))
    found = torch.tensor(page.js("state.directions.map(direction => [...direction])"))
    assert torch.allclose(found, helpers.directions(ROOT / "assets"), atol=1e-5)
    names = page.js("[...document.querySelectorAll('#sliders label')].map(label => label.textContent)")
    assert names[:8] == json.loads((ROOT / "assets/generator.json").read_text())["directions"]
    times = page.js("""Array.from({length: 30}, () => { const start = performance.now();
        document.getElementById('direction0').oninput(); return performance.now() - start; })""")
    print(f"from slider to picture: median {sorted(times)[15]:.0f} ms")


@pytest.mark.parametrize("folder, z_size, names", [("small", 20, ["<b>bold</b>", "direction 2"]),
                                                   ("wide", 7, ["direction 1", "direction 2"])])
def test_other_sizes_in_single_precision(chromium, site, folder, z_size, names):
    page = chromium
    page.open(f"{page.address}/demo/?folder=../{folder}")
    page.wait(READY)
    sample = helpers.load_generator(site / folder)
    assert same(drawn(page, "#grid canvas"), sample(16, seed=0))
    found = page.js("[...document.querySelectorAll('#sliders label')].map(label => label.textContent)")
    assert found[:2] == names and len(found) == min(8, z_size) + 1
    found = torch.tensor(page.js("state.directions.map(direction => [...direction])"))
    assert torch.allclose(found, helpers.directions(site / folder), atol=1e-4)


def test_sliders(page):
    sample, axes = helpers.load_generator(ROOT / "assets"), helpers.directions(ROOT / "assets")
    before, z = drawn(page, "#face"), random_z(1, 100)
    for index, value in ((0, -2), (5, 1.5)):
        page.js(f"direction{index}.value = {value}, direction{index}.oninput()")
    z = (z + STD * (1.5 * axes[5] - 2 * axes[0])).clamp(-1, 1)
    assert same(drawn(page, "#face"), sample(z=z)) and np.abs(drawn(page, "#face") - before).mean() > 10
    page.js("truncation.value = 0.5, truncation.oninput(), truncation.onchange()")
    page.wait(READY)
    assert same(drawn(page, "#face"), sample(z=z, truncation=0.5))
    assert same(drawn(page, "#grid canvas"), sample(16, truncation=0.5))
    page.js("reset.click()")
    assert same(drawn(page, "#face"), sample(1, truncation=0.5))


def test_with_the_keyboard_alone(page):
    sample, axes = helpers.load_generator(ROOT / "assets"), helpers.directions(ROOT / "assets")
    focus(page, "another")
    page.key("Enter")
    focus(page, "direction1")
    for _ in range(7):
        page.key("ArrowRight")
    z = (random_z(1, 100, seed=1) + 0.7 * STD * axes[1]).clamp(-1, 1)
    assert same(drawn(page, "#face"), sample(z=z))
    assert page.js("caption.textContent") == "Face 1 of seed 1, changed." and page.js("direction1.value") == "0.7"
    focus(page, "seed")
    page.wait(READY)  # until a face is drawn anew, its button is the one before
    for name in ("Tab", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowLeft", " "):  # faces 1, 2, 10, 9, 8
        page.key(name)
    assert page.js("caption.textContent") == "Face 8 of seed 1." and same(drawn(page, "#face"), sample(8, seed=1)[7:])
    assert page.js("document.querySelectorAll('[aria-pressed=true]').length") == 1


def test_the_way_from_a_to_b(page):
    sample, axes = helpers.load_generator(ROOT / "assets"), helpers.directions(ROOT / "assets")
    a, b = random_z(2, 100)
    row = drawn(page, "#path canvas")
    assert same(row[[0, 7]], sample(2)) and all(np.abs(x - y).mean() > 1 for x, y in zip(row, row[1:]))
    page.js("grid.children[4].click(), direction2.value = 1, keepB.click()")
    page.wait(READY)
    b = (random_z(16, 100)[4] + STD * axes[2]).clamp(-1, 1)
    assert same(drawn(page, "#path canvas")[[0, 7]], sample(z=torch.stack([a, b])))
    page.js("path.children[7].click()")
    assert same(drawn(page, "#face"), sample(z=b[None]))
    for share in (0, 0.2, 0.5, 0.9, 1):  # a point on the way is as uniform as its ends
        values = page.js(f"[...between(randomZ(1, 1, 20000)[0], randomZ(2, 1, 20000)[0], {share})]")
        counts = np.histogram(values, 10, (-1, 1))[0]
        assert counts.sum() == 20000 and np.abs(counts - 2000).max() < 200, share


def test_widths_labels_and_the_mouse(page):
    text = page.js("document.body.innerText")
    assert "Nobody drawn here exists" in text and "non-commercial research only" in text
    assert page.js("[...document.querySelectorAll('input')].every(input => input.labels[0].textContent)")
    buttons = page.js("[...document.querySelectorAll('button')].map(button => button.ariaLabel || button.textContent)")
    assert len(buttons) == 28 and all(buttons)
    for width, index in ((1200, 3), (390, 6)):
        page.size(width, 800)
        assert page.js("document.documentElement.scrollWidth <= innerWidth")
        page.js(f"grid.children[{index}].scrollIntoView({{block: 'center'}})")
        box = page.js(f"grid.children[{index}].getBoundingClientRect().toJSON()")
        page.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert same(drawn(page, "#face"), helpers.load_generator(ROOT / "assets")(index + 1)[index:])
        assert page.js("face.ariaLabel") == f"A drawn face: Face {index + 1} of seed 0."
    page.js("direction7.focus()")
    picture, slider = page.js("[face, direction7].map(element => element.getBoundingClientRect().toJSON())")
    assert 0 <= picture["top"] and picture["bottom"] <= slider["top"]  # on a phone both are in sight


def test_a_folder_built_for_a_run(chromium, site):
    chromium.open(f"{chromium.address}/built/")
    chromium.wait(READY)
    assert same(drawn(chromium, "#grid canvas"), helpers.load_generator(site / "small")(16))


@pytest.mark.parametrize("folder, fault", [
    ("absent", "cannot be read"), ("cut", "does not hold a generator of this project"),
    ("halved", "does not hold a generator of this project (FC.weight is not 128 x 10)"),
    ("foreign", "holds a generator with other layers than the project's")])
def test_a_wrong_folder_gets_one_sentence(chromium, folder, fault):
    chromium.open(f"{chromium.address}/demo/?folder=../{folder}/")
    message = chromium.wait("message.textContent != 'Loading the network…' && message.innerText")
    assert fault in message and folder in message and message.endswith(".") and "\n" not in message
    assert chromium.js("document.querySelector('main').hidden")
