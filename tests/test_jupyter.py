"""The notebook in JupyterLab, as a person sees it: all cells run, a slider moves the face, a training is interrupted.

`pytest tests/test_jupyter.py -s` prints the time from slider to picture; the screenshots are in pytest's folder."""
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from browser import browser
from conftest import TINY, copy_project

from plumbing.story import NOTEBOOK

pytest.importorskip("jupyterlab")
pytestmark = pytest.mark.browser

# What the page knows of its notebook: each code cell's number, and the text of its outputs.
PANEL = "[...jupyterapp.shell.widgets('main')][0]"
ACTIVE = f"{PANEL}.content.activeCell"
CELLS = PANEL + """.content.widgets.filter(cell => cell.model.type == 'code').map(cell => ({
    source: cell.model.sharedModel.source, count: cell.model.executionCount,
    outputs: cell.model.outputs.toJSON().map(o => ({type: o.output_type, text: [o.text, o.evalue, o.data?.['text/plain']].join('')}))}))"""


@contextlib.contextmanager
def jupyter(folder, application="lab"):
    """The address of a JupyterLab in folder that knows nothing of this user's settings."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"{name}_DIR": str(folder / ".jupyter" / name) for name in (
        "JUPYTER_CONFIG", "JUPYTER_DATA", "JUPYTER_RUNTIME", "JUPYTERLAB_SETTINGS", "JUPYTERLAB_WORKSPACES")}
    news = folder / ".jupyter/JUPYTERLAB_SETTINGS/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    news.parent.mkdir(parents=True, exist_ok=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    command = [sys.executable, "-m", "jupyter", application, "--no-browser", "--allow-root", "--expose-app-in-browser",
               "--IdentityProvider.token=", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | own, stdout=log, stderr=log)
    try:
        end, address = time.monotonic() + 120, f"http://127.0.0.1:{port}"
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api/status"):
                break
            assert process.poll() is None and time.monotonic() < end, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()  # the server ends its kernels
        process.wait(60)


def press(page, element, seconds=60):
    """Click in the middle of an element, a JavaScript expression, once it is there."""
    page.wait(f"!!({element})", seconds)
    x, y = page.js(f"(box => [box.x + box.width / 2, box.y + box.height / 2])(({element}).getBoundingClientRect())")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)  # menus take the item under the mouse
    page.click(x, y)


def labelled(kind, label):
    """The visible element of a CSS class with that text, in JavaScript."""
    return f"[...document.querySelectorAll('.{kind}')].find(e => e.textContent == {json.dumps(label)} && e.offsetWidth)"


def menu(page, *labels):
    """Choose from the menu bar."""
    for kind, label in zip(("lm-MenuBar-itemLabel", "lm-Menu-itemLabel"), labels):
        press(page, labelled(kind, label))


def open_notebook(page, address, name):
    """Open a notebook and wait for its kernel."""
    page.js("window.jupyterapp?.commands.execute('docmanager:save')")  # or the page would ask before it is left
    page.open(f"{address}/lab/tree/{name}?reset")
    page.wait("window.jupyterapp && !document.querySelector('#jupyterlab-splash')", 120)
    page.wait(f"{PANEL}?.sessionContext?.session?.kernel?.status == 'idle'", 120)
    page.js(f"jupyterapp.shell.activateById({PANEL}.id)")


def choose(page, text):
    """Make the cell whose source holds text the active one; returns its place among the code cells."""
    number = next(n for n, cell in enumerate(page.js(CELLS)) if text in cell["source"])
    page.js(f"""(async () => {{
        const {{content}} = {PANEL};
        content.activeCellIndex = content.widgets.findIndex(c => c.model.sharedModel.source.includes({json.dumps(text)}));
        await content.scrollToItem(content.activeCellIndex, 'start');
    }})()""")
    return number


def still(page, expression):
    """The value of expression once half a second does not change it: the notebook scrolls as its outputs grow."""
    found = None
    for _ in range(60):
        if found == (found := page.js(expression)):
            return found
        time.sleep(0.5)
    raise AssertionError(f"{expression} does not come to rest")


def wait_for_cells(page, first=0, seconds=600):
    """Wait until the code cells from first on have run one after the other; returns them. No output may be an error."""
    end = time.monotonic() + seconds
    while True:
        cells = page.js(CELLS)[first:]
        errors = [o["text"] for cell in cells for o in cell["outputs"] if o["type"] == "error"]
        assert not errors, errors
        counts = [cell["count"] for cell in cells]
        if counts == list(range(counts[0] or 0, (counts[0] or 0) + len(counts))) and counts[0]:
            return cells
        assert time.monotonic() < end, counts
        time.sleep(0.5)


def said(cell):
    return "".join(output["text"] for output in cell["outputs"])


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """(page, address, folder): a browser, and JupyterLab on a copy of the project whose parameters make a small run."""
    folder = tmp_path_factory.mktemp("lab")
    copy_project(folder)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell, = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for name, value in (TINY | {"n_epochs": 2, "print_every": 1}).items():
        cell.source, found = re.subn(rf"^({name}: \w+ = )\S+", lambda m: m[1] + json.dumps(value), cell.source, flags=re.M)
        assert found == 1, name
    nbformat.write(notebook, folder / NOTEBOOK.name)
    profile = tmp_path_factory.mktemp("profile")
    with browser(profile) as page, jupyter(folder) as address:
        page.size(1300, 900)
        yield page, address, folder


@pytest.fixture(scope="module")
def ran(lab):
    """lab, with the notebook open and all of its cells run."""
    page, address, folder = lab
    open_notebook(page, address, NOTEBOOK.name)
    menu(page, "Run", "Run All Cells")
    wait_for_cells(page)
    return lab


def test_all_cells_run(ran):
    page, _, folder = ran
    page.screenshot(folder / "all.png")
    assert said(page.js(CELLS)[-1]) == "metrics.json is written\n"
    assert json.loads((folder / "runs/latest/metrics.json").read_text())["steps"] == 10


FACE = ACTIVE + ".node.querySelector('img.widget-image')"
PIXELS = f"fetch({FACE}.src).then(r => r.arrayBuffer()).then(b => Array.from(new Uint8Array(b)))"
WATCH = f"""window.latency = null; addEventListener('pointerdown', () => {{
    const start = performance.now();
    new MutationObserver(async (_, observer) => {{
        observer.disconnect();
        await {FACE}.decode().catch(() => null);  // it fails if the next picture is there already
        window.latency = performance.now() - start;
    }}).observe({FACE}, {{attributes: true, attributeFilter: ['src']}});
}}, {{capture: true, once: true}})"""


def test_a_slider_moves_the_face(ran):
    page, address, folder = ran
    choose(page, "explore.explorer(")
    track = f"{ACTIVE}.node.querySelector('.noUi-target')"
    page.wait(f"!!({FACE}?.naturalWidth && {track})")
    x, y, width = still(page, f"(box => [box.x, box.y + box.height / 2, box.width])({track}.getBoundingClientRect())")
    times = []
    for place in (0.9, 0.1, 0.7, 0.3, 0.8):
        time.sleep(1)  # the handle glides, and takes no click while it does
        before = page.js(PIXELS)
        page.js(WATCH)
        page.click(x + place * width, y)
        times.append(page.wait("window.latency", 30))
        assert page.js(PIXELS) != before
    page.screenshot(folder / "slider.png")
    print(f"from slider to picture: {', '.join(f'{t:.0f}' for t in times)} ms")
    height, width = page.js(f"[{FACE}.naturalHeight, {FACE}.naturalWidth]")
    assert height == width == 256


def test_an_interrupted_training_leaves_a_notebook_that_works(ran):
    page, address, folder = ran
    number = choose(page, "train(state, celeba_train_loader")
    source = f"{ACTIVE}.model.sharedModel"
    page.js(f"{source}.setSource('n_epochs = 100000\\n' + {source}.source)")
    menu(page, "Run", "Run Selected Cell and Do not Advance")
    page.wait(f"{CELLS}[{number}].outputs.some(o => o.text.includes('epoch 12/100000'))", 120)
    page.screenshot(folder / "training.png")
    press(page, "document.querySelector('[data-command=\"notebook:interrupt-kernel\"]')")
    page.wait(f"{CELLS}[{number}].count", 60)
    assert re.search(r"stopped after step (\d+), checkpoint written", said(page.js(CELLS)[number]))
    page.js(f"{PANEL}.content.activeCellIndex += 1")
    menu(page, "Run", "Run Selected Cell and All Below")
    below = wait_for_cells(page, number + 1)
    assert "finished: False" in said(below[0])
    assert said(below[-1]) == "not finished: no metrics.json; set resume to True and go on\n"
    assert not (folder / "runs/latest/metrics.json").exists()
