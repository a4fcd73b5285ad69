"""Files that appear whole or not at all."""
import contextlib
import json
import os
from pathlib import Path

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
