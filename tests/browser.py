"""A headless Chromium for tests: browser(folder) starts one, served(folder) is a file server to point it at.

Driven over the DevTools protocol (https://chromedevtools.github.io/devtools-protocol) by websocket-client, which comes
with jupyter: no driver and no package more than the notebook needs."""
import base64
import contextlib
import functools
import http.server
import json
import shutil
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import websocket

FLAGS = ("--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --disable-quic --remote-debugging-port=0").split()
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38,
        "ArrowRight": 39, "ArrowDown": 40}


class Page:
    """The browser's one page."""

    def __init__(self, address):
        self.socket, self.count = websocket.create_connection(address, timeout=120, suppress_origin=True), 0

    def call(self, method, **parameters):
        """The result of a method of the protocol. Raises AssertionError if the browser refuses it."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.count:
            pass  # an event
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def js(self, expression):
        """The value of a JavaScript expression, awaited if it is a promise. Raises AssertionError if it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression, seconds=60):
        """The first true value of expression, asked for ten times a second. Raises AssertionError after seconds."""
        end = time.monotonic() + seconds
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"not true: {expression}; on the page: {self.js('document.body.innerText')}"
            time.sleep(0.1)
        return value

    def open(self, address):
        """Load address, and wait until its scripts have run once."""
        error = self.call("Page.navigate", url=address).get("errorText")
        assert not error, f"{address}: {error}"
        self.wait("document.readyState == 'complete'")

    def size(self, width, height):
        """Make the window's inside width by height CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def key(self, name, modifiers=0):
        """Press and release a key by its DOM name; modifiers: 1 alt, 2 control, 8 shift, added up."""
        text = {"Enter": "\r"}.get(name, name if len(name) == 1 and not modifiers & 3 else "")
        about = {"key": name, "modifiers": modifiers, "windowsVirtualKeyCode": KEYS.get(name, ord(name[0].upper()))}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def click(self, x, y):
        """Press and release the mouse at a place in CSS pixels of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path):
        """Write what the window shows to path, as PNG."""
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def browser(folder):
    """A Page of a headless Chromium that keeps its profile in folder; the test is skipped if there is no Chromium."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not program:
        pytest.skip("no Chromium found (Debian's package: chromium)")
    port = Path(folder) / "DevToolsActivePort"
    command = [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    with open(Path(folder) / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while not (port.exists() and port.read_text().count("\n")):
            assert process.poll() is None and time.monotonic() < end, (Path(folder) / "log").read_text()
            time.sleep(0.1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json/list") as answer:
            page = Page(next(one for one in json.load(answer) if one["type"] == "page")["webSocketDebuggerUrl"])
        with contextlib.closing(page.socket):
            yield page
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def served(folder):
    """The address of a local file server of folder."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
