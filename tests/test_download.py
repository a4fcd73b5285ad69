"""Downloads from a real server on this machine that cuts connections, ignores Range or gives something else."""
import hashlib
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import child, posix, refused
from odd_files import GOOD

from plumbing import files, photos

WHOLE = np.random.default_rng(0).bytes(100_000)
SHA256 = {content: hashlib.sha256(content).hexdigest() for content in (GOOD, WHOLE)}
TARGET, PARTIAL = Path("data/file.zip"), Path("data/file.zip.partial")


class Handler(BaseHTTPRequestHandler):
    """Gives the server's content as its path says, and notes each request's Range and how many bytes it was given."""

    def do_GET(self):
        content, server, wanted = self.server.content, self.server, self.headers.get("Range")
        if self.path == "/garbage":
            self.wfile.write(b"hello\r\n")
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.path != "/ignores" else 0
        status = 404 if self.path == "/missing" else 416 if start >= len(content) else 206 if start else 200
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) - start if status < 400 else 0))
        self.end_headers()
        if status < 400:
            part = content[start:][:server.cuts.pop(0) if server.cuts else None]
            server.log.append((wanted, len(part)))
            self.wfile.write(part)  # and the connection closes, whatever Content-Length says

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.content, running.cuts, running.log = WHOLE, [], []
        running.url = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


def download(server, kind="file", sha256=SHA256[WHOLE]):
    return files.download(f"{server.url}/{kind}", TARGET, sha256)


def test_celeba_is_downloaded_once(server, capfd):
    server.content = GOOD
    folder = photos.prepare_data("celeba", url=f"{server.url}/good", sha256=SHA256[GOOD])
    assert Path("data/processed-celeba-small.zip").read_bytes() == GOOD and len(photos.load_images(folder, 32)) == 5
    out, err = capfd.readouterr()
    assert out.startswith(f"Downloading {server.url}/good\n") and out.endswith("\n100% of 0.0 MB\n") and err == ""
    assert photos.prepare_data("celeba", url=f"{server.url}/missing", sha256="") == folder


def test_progress_is_a_line_for_each_tenth(server, capsys):
    server.content = bytes(30 * 2**20)
    download(server, sha256=hashlib.sha256(server.content).hexdigest())
    first, *lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{share}% of 31.5 MB" for share in range(10, 101, 10)]


def test_no_share_is_printed_twice_whatever_parts_come(tmp_path, monkeypatch, capsys):
    content = bytes(1000)

    class Answer(io.BytesIO):
        status, headers, parts = 200, {"Content-Length": "1000"}, iter([*8 * [111], 108, 4, 0])  # 99.6 %, then the rest

        def read1(self, _):
            return self.read(next(self.parts))

    monkeypatch.setattr(files, "urlopen", lambda *_, **__: Answer(content))
    files.fetch("http://nowhere/", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content
    shares = [int(line.split("%")[0]) for line in capsys.readouterr().out.splitlines()]
    assert shares == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]


def test_a_cut_download_goes_on_where_it_stopped(server):
    server.cuts = [30_000, 1, 50_000]
    assert download(server).read_bytes() == WHOLE and not PARTIAL.exists()
    assert server.log == [(None, 30_000), ("bytes=30000-", 1), ("bytes=30001-", 50_000), ("bytes=80001-", 19_999)]


def test_a_cut_download_goes_on_the_next_time(server):
    server.cuts = [30_000, 0, 0]
    refused(lambda: download(server), "(the connection was cut after 30,000 of 100,000 bytes); try again, or")
    assert PARTIAL.read_bytes() == WHOLE[:30_000] and not TARGET.exists()
    server.cuts, server.log = [], []
    assert download(server).read_bytes() == WHOLE and server.log == [("bytes=30000-", 70_000)]


def test_a_server_that_ignores_range_gives_the_whole_file(server):
    server.cuts = [30_000]
    assert download(server, "ignores").read_bytes() == WHOLE
    assert server.log == [(None, 30_000), ("bytes=30000-", 100_000)]
    TARGET.unlink()
    server.cuts = [30_000] * 9  # always at the same place
    refused(lambda: download(server, "ignores"), "cut after 30,000 of 100,000 bytes")
    assert len(server.log) == 4


def test_a_download_that_was_killed_at_its_end_is_only_checked(server):
    PARTIAL.parent.mkdir()
    PARTIAL.write_bytes(WHOLE)
    assert download(server).read_bytes() == WHOLE and server.log == []


def test_a_wrong_checksum_removes_what_came(server):
    PARTIAL.parent.mkdir()
    PARTIAL.write_bytes(b"of another file")
    refused(lambda: download(server), "could not be downloaded (its sha256 is ", f"and not {SHA256[WHOLE][:8]}...",
            "so it was removed); try again")
    assert not PARTIAL.exists() and not TARGET.exists()
    assert download(server).read_bytes() == WHOLE


@pytest.mark.parametrize("kind", ["missing", "garbage"])
def test_what_had_come_outlives_a_server_that_fails(server, kind):
    PARTIAL.parent.mkdir()
    PARTIAL.write_bytes(WHOLE[:10])
    refused(lambda: download(server, kind), f"{server.url}/{kind} could not be downloaded (")
    assert PARTIAL.read_bytes() == WHOLE[:10] and not TARGET.exists()


@pytest.mark.parametrize("url, folder", [("no-url", "data"), ("http://127.0.0.1:9/file", "data"), ("{}/file", "taken")])
def test_no_server_or_no_folder(server, url, folder):
    Path("taken").touch()
    url = url.format(server.url)
    refused(lambda: files.download(url, f"{folder}/file.zip", SHA256[WHOLE]), f"{url} could not be downloaded (",
            "); try again, or give the path of a zip as dataset.")
    assert not Path(folder, "file.zip").exists()


@posix
def test_two_at_once_download_once(server):
    others = [child(download, server) for _ in range(2)]
    assert download(server).read_bytes() == WHOLE
    for other in others:
        other.join()
        assert other.exitcode == 0
    assert server.log == [(None, 100_000)]
