"""Files that appear whole or not at all."""
import contextlib
import hashlib
import json
import os
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import filelock

from . import ranks


@contextlib.contextmanager
def whole_file(path):
    """A binary file to write; it appears at path complete and on disk, or not at all. path has one writer at a time.

    Of several ranks rank 0 alone writes. Raises OSError with one sentence if it cannot; the previous file is then
    unchanged."""
    if ranks.rank:
        with open(os.devnull, "wb") as nothing:
            yield nothing
        return
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        fault = error if isinstance(error, OSError) else error.__context__  # torch.save covers an OSError with its own
        if not isinstance(fault, OSError):
            raise
        raise OSError(f"{path} cannot be written ({fault.strerror or fault}); the previous file is unchanged. "
                      "Free some space or choose another output_dir.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write(path, content):
    """Write content (bytes) to path as a whole_file."""
    with whole_file(path) as file:
        file.write(content)


def write_json(path, content):
    """Write content as JSON to path. Raises ValueError for NaN and infinity, which JSON does not have (RFC 8259)."""
    write(path, json.dumps(content, indent=1, allow_nan=False).encode())


def save_figure(path, figure):
    """Write a matplotlib figure to path as PNG."""
    with whole_file(path) as file:
        figure.savefig(file, format="png", bbox_inches="tight")


def bytes_in(path):
    """The size of the file at path, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def fetch(url, path):
    """Bring path, which may hold the first bytes of the file at url, to its end. Raises OSError if it is cut short.

    The rest is asked for by HTTP's Range (RFC 9110, section 14); a server that ignores it gives the whole file anew."""
    done = bytes_in(path)
    try:
        answer = urlopen(Request(url, headers={"Range": f"bytes={done}-"} if done else {}), timeout=60)
    except HTTPError as error:
        if error.code != 416:  # 416: the file ends here
            raise
        return
    with answer, open(path, "ab" if answer.status == 206 else "wb") as file:
        total, shown = file.tell() + int(answer.headers.get("Content-Length", 0)), 0
        while part := answer.read1(2**20):
            file.write(part)
            if total and (tenths := 10 * file.tell() // total) > shown:
                shown = tenths
                print(f"{10 * tenths}% of {total / 1e6:,.1f} MB")
        if file.tell() < total:
            raise OSError(f"the connection was cut after {file.tell():,} of {total:,} bytes")


def download(url, path, sha256):
    """path, holding the file at url: downloaded and checked against sha256 unless it is there.

    What has come so far is in path.partial, and a download that was cut goes on from there, at once or the next time.
    Raises OSError with one sentence if url does not give that file."""
    path, partial = Path(path), Path(f"{path}.partial")
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{partial}.lock"):
            while not path.exists():
                print(f"Downloading {url}")
                before = bytes_in(partial)
                try:
                    fetch(url, partial)
                except (OSError, HTTPException):
                    if bytes_in(partial) <= before:  # a try that brings nothing is the last
                        raise
                    continue
                with open(partial, "rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != sha256:
                    partial.unlink()
                    raise ValueError(f"its sha256 is {found[:8]}... and not {sha256[:8]}..., so it was removed")
                partial.rename(path)
    except (OSError, ValueError, HTTPException) as error:
        raise OSError(f"{url} could not be downloaded ({' '.join(str(error).split())}); try again, or give the "
                      "path of a zip as dataset.") from error
    return path
