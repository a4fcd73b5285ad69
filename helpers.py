"""Plumbing for face_generation.ipynb: what a reader may believe without reading.

Parameters, files, pictures, checkpoints, devices and measures. Everything about the game itself (networks, losses,
steps, loop) is in the notebook. Images are uint8 in files and grids, float in [-1, 1] inside the networks.
"""
import ast
import contextlib
import copy
import ctypes
import glob
import hashlib
import importlib.util
import io
import itertools
import json
import math
import os
import pickle
import re
import secrets
import shutil
import signal
import stat
import sys
import threading
import time
import types
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path, PurePath

import filelock
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch.utils.data import Subset
from torchvision.utils import make_grid

# --- Parameters -------------------------------------------------------------------------------------------------------

WHOLE = (int, "a whole number")
REAL = (float, "a number")
TEXT = (str, "a text")
SWITCH = (bool, "true or false")


def is_path(text):
    """Whether the operating system takes text as a path: not blank, no NUL, no lone surrogates."""
    return text.strip() != "" and b"\0" not in os.fsencode(text)


RULES = {  # name: (type, what it must be, the test of it)
    "dataset": (*TEXT, "a zip file, a folder of images or \"celeba\"", is_path),
    "output_dir": (*TEXT, "the path of a folder", is_path),
    "image_size": (*WHOLE, "32, 64 or 128", lambda v: v in (32, 64, 128)),
    "batch_size": (*WHOLE, "4 or more", lambda v: v >= 4),  # the statistics of fewer mean nothing
    "n_epochs": (*WHOLE, "1 or more", lambda v: v >= 1),
    "print_every": (*WHOLE, "1 or more", lambda v: v >= 1),
    "z_size": (*WHOLE, "1 or more", lambda v: v >= 1),
    "d_conv_dim": (*WHOLE, "1 or more", lambda v: v >= 1),
    "g_conv_dim": (*WHOLE, "1 or more", lambda v: v >= 1),
    "d_lr": (*REAL, "more than 0", lambda v: v > 0),
    "g_lr": (*REAL, "more than 0", lambda v: v > 0),
    "lr_decay": (*WHOLE, "0 (never) or more", lambda v: v >= 0),
    "beta1": (*REAL, "from 0 to less than 1", lambda v: 0 <= v < 1),
    "beta2": (*REAL, "from 0 to less than 1", lambda v: 0 <= v < 1),
    "label_smoothing": (*REAL, "from 0 to less than 1", lambda v: 0 <= v < 1),
    "ema_decay": (*REAL, "from 0 (no averaging) to less than 1", lambda v: 0 <= v < 1),
    "augment": (*TEXT, "\"flip\", \"shift\", \"flip shift\" or \"\"", lambda v: v in ("", "flip", "shift", "flip shift")),
    "instance_noise": (*REAL, "0 (none) or more", lambda v: v >= 0),
    "seed": (*WHOLE, "from 0 to 4294967295", lambda v: 0 <= v < 2**32),
    "device": (*TEXT, "auto, cuda, mps, xpu or cpu", lambda v: re.fullmatch("(auto|cuda|mps|xpu|cpu)(:[0-9]+)?", v)),
    "precision": (*TEXT, "auto, fp32 or bf16", lambda v: v in ("auto", "fp32", "bf16")),
    "fid": (*SWITCH, "true or false", lambda v: True),
    "start_from": (*TEXT, "the folder of a run or \"\"", lambda v: v == "" or is_path(v)),
    "resume": (*SWITCH, "true or false", lambda v: True),
}


def shown(value):
    """value as one line of at most 80 characters, for messages."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # such as an integer of 5,000 digits
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def reason(error):
    """What error says as one line without a full stop, to be put into a sentence."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def convert(value, kind):
    """value as kind (bool, int, float or str); text such as "false" or "1e-3" counts as what it says.

    Raises ValueError where value does not say one thing of that kind, or a number that no computer word holds."""
    number = kind in (int, float)
    if kind is str and isinstance(value, (PurePath, torch.device)):
        value = str(value)
    elif kind is bool and isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower())
    elif number and isinstance(value, str):
        text = value.strip()
        value = int(text) if text.lstrip("+-").isdigit() else float(text)  # a float would round a long integer
    good = isinstance(value, (int, float) if number else kind) and isinstance(value, bool) == (kind is bool)
    if good and number:
        good = abs(value) < 2**63 and (kind is float or value == int(value))  # NaN and infinity are not below it
    if not good:
        raise ValueError(f"{shown(value)} is no {kind.__name__}")
    return kind(value)


def injected_names(cells):
    """The names that the last of cells (list of str) with papermill's mark, "# Parameters", gives values to."""
    injected = next((cell for cell in reversed(cells) if cell.startswith("# Parameters")), "")
    try:
        body = ast.parse(injected).body
    except SyntaxError:  # a reader's own cell, with a %magic
        return []
    return [target.id for node in body if isinstance(node, ast.Assign) for target in node.targets
            if isinstance(target, ast.Name)]


def check_parameters(namespace):
    """The notebook's parameters, checked and converted, from its namespace: a dict of the names in RULES.

    papermill injects whatever it is given ("false" and 1e-3 arrive as text, unknown names only cause a warning), so
    the names are compared with RULES here as well. Raises ValueError with one sentence a wrong parameter."""
    faults = [f"{name} is no parameter of this notebook; there are {', '.join(RULES)}."
              for name in injected_names(namespace.get("In", [])) if name not in RULES]
    checked = {}
    for name, (kind, noun, limits, allowed) in RULES.items():
        try:
            checked[name] = convert(namespace.get(name), kind)
            good = allowed(checked[name])
        except ValueError:
            good = False
        if not good:
            wanted = limits if kind in (str, bool) else f"{noun}, {limits}"
            faults.append(f"{name} must be {wanted}; it is {shown(namespace.get(name))}.")
    if checked.get("fid") and not importlib.util.find_spec("torch_fidelity"):
        faults.append("fid is true and needs a package: pip install torch-fidelity, or set fid to false.")
    if not faults and checked["start_from"] and not checked["resume"]:
        start, output = (Path(os.path.expanduser(checked[name])) for name in ("start_from", "output_dir"))
        if not os.path.exists(start / "checkpoint.pt"):  # Path.exists raises where the name is too long
            faults.append(f"start_from is {shown(checked['start_from'])}, and there is no checkpoint.pt in it; name the folder "
                          "of a run, or set start_from to \"\".")
        elif start.resolve() == output.resolve():
            faults.append("start_from and output_dir are the same folder; choose another output_dir.")
    if faults:
        raise ValueError(" ".join(faults))
    return checked


# --- Devices ----------------------------------------------------------------------------------------------------------

def choose_device(name="auto"):
    """The torch.device for name; "auto" takes the first there is of cuda, mps, xpu and cpu.

    Raises ValueError where the named device is not on this machine."""
    found = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "xpu": torch.xpu.is_available,
             "cpu": lambda: True}
    if name == "auto":
        return torch.device(next(kind for kind, is_available in found.items() if is_available()))
    kind = name.split(":")[0]
    if kind not in found or not found[kind]():
        raise ValueError(f"device is {name!r}, and PyTorch finds none here; use device \"auto\" or \"cpu\".")
    try:
        torch.empty(0, device=name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}, and PyTorch finds no such device here; use \"{kind}\".") from error
    return torch.device(name)


def keep_freed_memory():
    """Let this process keep the memory that tensors free, where the C library is glibc; elsewhere nothing happens.

    By default glibc gives freed megabytes back to the system, which then has to fill the next tensor with zeros, page by
    page: on an AMD EPYC an eighth of a step of 16 faces in bf16. The numbers are those of malloc.h, the sizes in bytes."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # without mallopt, or a C library of no name
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 32 * 2**20)   # M_MMAP_THRESHOLD, at its largest
        mallopt(-1, 2**31 - 1)    # M_TRIM_THRESHOLD


def speed_up(device, dtype=torch.bfloat16):
    """How many times as fast as fp32 a convolution of the networks' kind computes in dtype, at its best of five."""
    x, w = torch.ones(64, 128, 8, 8, device=device), torch.ones(256, 128, 4, 4, device=device)
    seconds = {torch.float32: [], dtype: []}
    for _ in range(6):
        for kind, taken in seconds.items():
            a, b = (t.to(kind, memory_format=torch.channels_last) for t in (x, w))
            start = time.perf_counter()
            F.conv2d(a, b, stride=2, padding=1)
            taken.append(time.perf_counter() - start)
    return min(seconds[torch.float32][1:]) / min(seconds[dtype][1:])


def choose_precision(name, device):
    """("bf16" or "fp32", why): what autocast computes in. "auto" takes bf16 only where the hardware gains by it.

    A processor may list bf16 among its instructions and still be faster without: there a convolution is timed."""
    if name != "auto":
        return name, "as asked"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "the GPU computes in it") if native else ("fp32", "the GPU has no native bf16")
    if device.type == "cpu":
        can = getattr(torch.cpu, "get_capabilities", dict)()
        native = next((flag for flag in ("amx_bf16", "avx512_bf16", "sve_bf16") if can.get(flag)), None)
        if not native:
            return "fp32", "the processor has no native bf16"
        gain = speed_up(device)
        return ("bf16" if gain > 1.1 else "fp32"), f"the processor's {native} is {gain:.1f} times as fast as fp32"
    return "fp32", f"bf16 on {device.type} is untried"


SHIFTS = [(1 - 2 * j, 2 * j - 1, 1 - 2 * i, 2 * i - 1) for i in (0, 1) for j in (0, 1)]  # left, right, top, bottom


def small_conv(x, weight):
    """F.conv2d(x, weight, stride=2, padding=1) for x (batch, in, 4, 4) and weight (out, in, 4, 4): (batch, out, 2, 2).

    A kernel as large as the picture sees all of it in each of its four places, moved by one pixel to either side."""
    x = x.permute(0, 2, 3, 1)
    seen = torch.stack([F.pad(x, (0, 0, *shift)) for shift in SHIFTS], dim=1)          # (batch, 4, 4, 4, in)
    out = F.linear(seen.flatten(2), weight.permute(0, 2, 3, 1).flatten(1))             # (batch, 4, out)
    return out.unflatten(1, (2, 2)).permute(0, 3, 1, 2)


def small_deconv(x, weight):
    """F.conv_transpose2d(x, weight, stride=2, padding=1) for x (batch, in, 2, 2) and weight (in, out, 4, 4): the other
    way round, (batch, out, 4, 4) is the sum of four pictures, each moved by one pixel to either side."""
    painted = x.permute(0, 2, 3, 1).flatten(1, 2) @ weight.permute(0, 2, 3, 1).flatten(1)
    painted = painted.unflatten(2, (4, 4, -1))                                         # (batch, 4, 4, 4, out)
    return sum(F.pad(painted[:, n], (0, 0, *(-s for s in SHIFTS[n]))) for n in range(4)).permute(0, 3, 1, 2)


def small_as_products(network):
    """Let the convolutions of network between 4x4 and 2x2 pixels compute as matrix products; returns network.

    The result is the same up to rounding. Where weights are many and pixels few, a processor's convolution is slow:
    with AVX-512, ONEDNN_VERBOSE=1 shows 80 to 100 GFLOP/s there and about 200 in the other large layers."""
    def forward(self, x):
        if isinstance(self, torch.nn.Conv2d):
            return small_conv(x, self.weight) if x.shape[2:] == (4, 4) else type(self).forward(self, x)
        return small_deconv(x, self.weight) if x.shape[2:] == (2, 2) else type(self).forward(self, x)

    for layer in network.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)) and layer.bias is None and (
                layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups) == (
                (4, 4), (2, 2), (1, 1), (1, 1), 1):
            layer.forward = types.MethodType(forward, layer)
    return network


def versions():
    """Names and versions of what computes the results."""
    import platform
    import torchvision
    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
            "numpy": np.__version__}


def device_name(device):
    """The name that the maker gave this device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in open("/proc/cpuinfo"):
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {torch.get_num_threads()} threads"
    import platform
    return f"{platform.processor() or platform.machine()} {device.type}, {torch.get_num_threads()} threads"


# --- Files: whole or not at all ---------------------------------------------------------------------------------------

def remove_partials(path):
    """Remove what killed runs left of writing path; an hour without change tells it from a file still being written."""
    for partial in Path(path).parent.glob(f"{glob.escape(Path(path).name)}.*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > 3600:
                partial.unlink()


@contextlib.contextmanager
def whole_file(path):
    """A binary file to write; it appears at path complete and on disk, or not at all.

    Raises OSError with one sentence where it cannot be written; what was at path before is then untouched."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")  # a name of its own for each writer
    try:
        remove_partials(path)
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        fault = error if isinstance(error, OSError) else error.__context__  # torch.save covers an OSError with its own
        if not isinstance(fault, OSError):
            raise
        raise OSError(f"{path} cannot be written ({fault.strerror or fault}); what was there before is as it was. "
                      "Free some space or choose another output_dir.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    with contextlib.suppress(OSError):  # the move is on disk once the folder is; Windows cannot sync folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_json(path, content):
    """Write content as JSON (no NaN: RFC 8259 has none)."""
    with whole_file(path) as file:
        file.write(json.dumps(content, indent=1, allow_nan=False).encode())


def save_samples(path, samples):
    """Write samples, a list of uint8 arrays (count, height, width, 3), as a pickle of plain NumPy arrays."""
    with whole_file(path) as file:
        pickle.dump([np.asarray(s) for s in samples], file, protocol=4)


class ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays in lists and tuples and nothing that could run code."""

    def find_class(self, module, name):
        if (module, name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
                              ("numpy", "ndarray"), ("numpy", "dtype")}:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def load_samples(path):
    """The list of arrays that save_samples wrote. Raises ValueError where the file holds anything else."""
    try:
        with open(path, "rb") as file:
            samples = ArraysOnly(file).load()
        arrays = isinstance(samples, list) and all(isinstance(s, np.ndarray) for s in samples)
        if not arrays or any(s.dtype != np.uint8 for s in samples):
            raise pickle.UnpicklingError("it holds no list of uint8 arrays")
        return samples
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from error
    except Exception as error:  # a pickle cut short or made up can raise anything
        raise ValueError(f"{path} is no file of samples: {reason(error)}.") from error


# --- Data -------------------------------------------------------------------------------------------------------------

CELEBA_URL = ("https://s3.amazonaws.com/video.udacity-data.com/topher/2018/November/"
              "5be7eb6f_processed-celeba-small/processed-celeba-small.zip")
CELEBA_SHA256 = "2cd4fbba4b618faeb4be18c69da3a68ff6a163057d12ff321cb044fc51f416d3"
ORIENTATION = 0x0112  # the EXIF entry that says how the camera was held
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")  # what Pillow may take a file for, whatever it is called


def is_hidden(part):
    """Whether part, one step of a path, is a name that systems give to files of their own."""
    return part == "__MACOSX" or part.startswith(".") and part not in (".", "..")


def is_image_name(name):
    """Whether name looks like an image file that a person put there (no __MACOSX, no hidden file)."""
    parts = name.replace("\\", "/").split("/")
    return os.path.splitext(parts[-1])[1].lower() in SUFFIXES and not any(map(is_hidden, parts))


def prepare_data(dataset, folder="data", url=CELEBA_URL, sha256=CELEBA_SHA256):
    """The folder of images that dataset stands for: a folder itself, an unpacked zip, or "celeba", downloaded.

    Raises FileNotFoundError, ValueError or OSError with one sentence where there is none."""
    if dataset == "celeba":
        dataset = download(url, Path(folder) / "processed-celeba-small.zip", sha256)
    path = os.path.expanduser(dataset)
    if os.path.isdir(path):
        return Path(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"dataset {str(dataset)!r} does not exist (looked in {Path.cwd()}); "
                                "give a zip file, a folder of images or \"celeba\".")
    return unzip(path, folder)


def download(url, path, sha256):
    """path, holding the file at url with that sha256: downloaded unless it is there, and checked in both cases.

    Raises OSError with one sentence where url does not give that file, ValueError where path holds another one."""
    path = Path(path)
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_partials(path)
            print(f"Downloading {url}")
            torch.hub.download_url_to_file(url, str(path), sha256, progress=sys.stderr.isatty())
            return path
    except (OSError, RuntimeError, ValueError, HTTPException) as error:
        raise OSError(f"{url} could not be downloaded ({reason(error)}); try again, or give the path of a zip as "
                      "dataset.") from error
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            found.update(block)
    if found.hexdigest() != sha256:
        raise ValueError(f"{path} is not the file at {url} (its SHA-256 is {found.hexdigest()}); move it away, and it "
                         "is downloaded again.")
    return path


def image_members(archive, size):
    """The entries of an open ZipFile of size bytes that are images; of several with one name, the last.

    Raises ValueError for entries that leave the folder, links, encryption, and contents far larger than the file."""
    members, lower = {}, set()
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")
        if name.startswith("/") or ".." in name.split("/") or re.match("[A-Za-z]:", name):
            raise ValueError(f"its entry {shown(info.filename)} leaves the folder")
        if info.is_dir() or not is_image_name(name):
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ValueError(f"its entry {shown(info.filename)} is a link")
        if info.flag_bits & 1:
            raise ValueError("it is encrypted")
        members[info.filename] = info
    if not members:
        raise ValueError(f"it holds no image ({', '.join(sorted(SUFFIXES))})")
    for number, info in enumerate(members.values()):
        if info.filename.lower() in lower:  # one file for two names on Windows and macOS
            stem, suffix = os.path.splitext(info.filename)
            info.filename = f"{stem}~{number}{suffix}"
        lower.add(info.filename.lower())
    unpacked = sum(info.file_size for info in members.values())
    if unpacked > 100 * size + 10**8:
        raise ValueError(f"it would unpack to {unpacked / size:.0f} times its size")
    return list(members.values())


def unzip(path, folder="data"):
    """Unpack the images of the zip at path into a folder of its own under folder, once; return that folder.

    The folder's name carries a digest of the zip's table of contents, so another zip of the same name gets another one.
    It appears whole or not at all: unpacked beside it under a lock, then moved. Raises FileNotFoundError, ValueError
    or OSError with one sentence where the zip is no file, is corrupt, unsafe or without images, or does not fit."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is neither a zip file nor a folder of images.")
    try:
        with zipfile.ZipFile(path) as archive:
            members = image_members(archive, os.path.getsize(path))
            contents = repr([(i.filename, i.CRC, i.file_size) for i in members])
            target = Path(folder) / f"{Path(path).stem[:60]}-{hashlib.sha256(contents.encode()).hexdigest()[:8]}"
            partial = target.with_name(f".{target.name}.partial")
            if target.is_dir():
                return target
            Path(folder).mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(f"{partial}.lock"):
                try:
                    if not target.is_dir():
                        shutil.rmtree(partial, ignore_errors=True)
                        archive.extractall(partial, members)
                        partial.rename(target)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise OSError(f"{path} cannot be unpacked into {folder} ({error.strerror or error}).") from error
    except Exception as error:  # a damaged zip can raise anything
        raise ValueError(f"{path} cannot be used as a dataset: {reason(error)}.") from error
    return target


def decode(path, size):
    """The image at path as uint8 (size, size, 3), cropped to its middle square; None where it is no image.

    Shrinking averages over areas, so that 64x64 becomes 32x32 by the mean of each 2x2 block. What is transparent
    becomes white. Of several frames the first is taken."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if min(image.size) >= 4 * size:
                image.draft("RGB", (2 * size, 2 * size))  # lets a large JPEG be decoded at a fraction of its size
            plain = image.format == "JPEG" and not image.info.keys() & {"exif", "xmp"}  # nothing says how it was held
            if not plain and image.getexif().get(ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits a pixel, which convert would clip to white
                image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                cut_out = image.convert("RGBA")
                image = Image.new("RGB", image.size, "white")
                image.paste(cut_out, mask=cut_out)
            elif image.mode != "RGB":
                image = image.convert("RGB")
            side = min(image.size)
            left, top = ((length - side) / 2 for length in image.size)
            method = Image.Resampling.BOX if side >= 2 * size else Image.Resampling.BICUBIC
            return np.asarray(image.resize((size, size), method, (left, top, left + side, top + side)))
    except Exception:  # Pillow raises nearly anything for junk
        return None


SMALL = 2**16  # bytes: below, opening a file is the most of the work, and threads would only wait for each other


def decode_all(folder, files, size, count):
    """The first count images among files, (name, bytes, time) as image_files gives them: uint8 (count, 3, size, size).

    Second, the indices of the files before them that are no image."""
    names = [name for name, *_ in files]
    images, junk = np.empty((min(count, len(names)), 3, size, size), np.uint8), []
    kept = index = 0
    with ThreadPoolExecutor(min(8, os.cpu_count())) as pool, warnings.catch_warnings():
        at_once = pool.map if any(length >= SMALL for _, length, _ in files) else map
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        while kept < len(images) and index < len(names):  # again for as many as were no image
            wanted = names[index:index + len(images) - kept]
            parts = [wanted[start:start + 64] for start in range(0, len(wanted), 64)]  # a thread needs more than one
            decoded = at_once(lambda part: [decode(os.path.join(folder, name), size) for name in part], parts)
            for index, image in enumerate(itertools.chain.from_iterable(decoded), start=index):
                if image is None:
                    junk.append(index)
                else:
                    images[kept] = image.transpose(2, 0, 1)
                    kept += 1
            index += 1
    return images[:kept], junk


def image_files(folder):
    """(name relative to folder, bytes, time of the last change) of every file below folder named as an image, sorted.

    Links to folders are not followed, and folders that may not be read are passed over."""
    found, below = [], [""]
    for part in below:
        with contextlib.suppress(PermissionError), os.scandir(os.path.join(folder, part)) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if not is_hidden(entry.name):
                        below.append(f"{part}{entry.name}/")
                elif is_image_name(entry.name) and entry.is_file():
                    found.append((part + entry.name, entry.stat().st_size, entry.stat().st_mtime_ns))
    return sorted(found)


DECODER = 1  # to be raised with every change of what decode gives, so that no image comes from an older one's cache
WORTH_KEEPING = 1.0  # seconds of decoding from which on the images are kept for the next time
CACHE_LIMIT = 2**31  # bytes that one file of them may have


def decode_once(folder, files, size):
    """decode_all of all files, (name, bytes, time) as image_files gives them, from data/cache-*.npy where it has them.

    A cache that cannot be read or written is done without: it only saves time. The three newest are kept."""
    key = repr((DECODER, size, os.path.realpath(folder), files)).encode("utf-8", "backslashreplace")
    cache = Path("data") / f"cache-{hashlib.sha256(key).hexdigest()[:16]}.npy"
    try:
        with open(cache, "rb") as file:
            images, junk = np.load(file, allow_pickle=False), np.load(file, allow_pickle=False).tolist()
        right = (images.dtype, images.shape) == (np.uint8, (len(files) - len(junk), 3, size, size))
        if right and all(0 <= index < len(files) for index in junk):
            return images, junk
    except Exception:  # there is none, or it is damaged
        pass
    start = time.perf_counter()
    images, junk = decode_all(folder, files, size, len(files))
    if time.perf_counter() - start > WORTH_KEEPING and images.nbytes <= CACHE_LIMIT:
        with contextlib.suppress(OSError):
            cache.parent.mkdir(exist_ok=True)
            for older in sorted(cache.parent.glob("cache-*.npy"), key=os.path.getmtime)[:-2]:
                older.unlink()
            with whole_file(cache) as file:
                np.save(file, images)
                np.save(file, np.array(junk, np.int64))
    return images, junk


def load_images(data_dir, image_size, limit=None):
    """Every image below data_dir, or the first limit, in order of name: uint8 (count, 3, image_size, image_size).

    Files that are no image, or one of more than 89 million pixels, are left out and counted in a printed line. Raises
    FileNotFoundError where the folder does not exist and ValueError where no image is in it."""
    if not os.path.isdir(data_dir):
        raise FileNotFoundError(f"The data folder {str(data_dir)!r} does not exist (looked in {Path.cwd()}).")
    files = image_files(data_dir)
    names = [name for name, *_ in files]
    if limit is None:
        images, junk = decode_once(data_dir, files, image_size)
    else:
        images, junk = decode_all(data_dir, files, image_size, limit)
    if junk:
        first = ", ".join(repr(os.path.basename(names[i]))[1:-1] for i in junk[:3])  # repr: a name can hold anything
        print(f"Left out {len(junk)} of {len(images) + len(junk)} files that are no image: {first}"
              f"{', ...' if len(junk) > 3 else ''}")
    if not len(images):
        raise ValueError(f"The data folder {str(data_dir)!r} holds no image ({', '.join(sorted(SUFFIXES))}).")
    return torch.from_numpy(images)


def as_pictures(loader, count):
    """The first count images of a loader over one tensor, in order of name: uint8 array (count, height, width, 3)."""
    indices = list(loader.dataset[:count])
    pictures = None
    for start in range(0, len(indices), 1024):
        some = to_uint8(2 * loader.collate_fn(indices[start:start + 1024]) - 1)
        pictures = np.empty((len(indices), *some.shape[1:]), np.uint8) if pictures is None else pictures
        pictures[start:start + len(some)] = some  # to concatenate the parts would take the memory twice
    return pictures


def zip_faces(run, path, count=7500):
    """Sample count faces from the generator kept in the folder run into a zip of JPEGs laid out as the course's."""
    faces = load_generator(run)(count)
    with whole_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for number, face in enumerate(faces):
            jpeg = io.BytesIO()
            Image.fromarray(face).save(jpeg, "JPEG", quality=92, optimize=True)
            entry = zipfile.ZipInfo(f"processed_celeba_small/celeba/{number:06d}.jpg")  # a fixed date: same zip again
            archive.writestr(entry, jpeg.getvalue())


# --- Pictures ---------------------------------------------------------------------------------------------------------

def shifted(images):
    """Half of images (count, channels, size, size), drawn at random, each moved by up to size // 8 pixels up or down and
    left or right, with zeros where it came from; gradients pass through (translation, Zhao et al. 2020)."""
    count, size, most = len(images), images.shape[-1], images.shape[-1] // 8
    pixels = torch.randint(-most, most + 1, (count, 2), device=images.device)
    pixels = pixels * (torch.rand(count, 1, device=images.device) < 0.5)
    move = torch.eye(2, 3, device=images.device).repeat(count, 1, 1)
    move[:, :, 2] = 2 * pixels / size
    where = F.affine_grid(move, images.shape, align_corners=False)
    return F.grid_sample(images.float(), where, mode="nearest", padding_mode="zeros", align_corners=False)


def to_uint8(images):
    """Images in [-1, 1], float tensor (count, 3, height, width), as a uint8 array (count, height, width, 3)."""
    pixels = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def grid(images, columns=8):
    """uint8 images (count, height, width, 3) side by side: one uint8 array (rows * height, columns * width, 3)."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return make_grid(tensor, nrow=columns, padding=1, pad_value=255).permute(1, 2, 0).numpy()


def show_faces(images, columns=8, title=None, path=None):
    """Draw uint8 images (count, height, width, 3) as one figure, sized by its number of rows; keep it at path."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(figsize=(columns, rows + 0.3 * (title is not None)), layout="constrained")
    axes.imshow(grid(images, columns), interpolation="nearest")
    axes.set_axis_off()
    if title:
        axes.set_title(title)
    if path:
        save_figure(figure, path)
    return figure


def save_figure(figure, path):
    """Write figure as PNG to path, whole or not at all."""
    with whole_file(path) as file:
        figure.savefig(file, format="png")


def show_training(records, path):
    """Draw rows (g_loss, d_loss, share right on real, share right on fake), one a step: losses left, shares right.

    Thin lines are single steps, thick ones means over a twentieth of the run. The figure is kept at path."""
    g_losses, d_losses, right_on_real, right_on_fake = np.array(records).T
    window = max(1, len(records) // 20)
    steps = np.arange(window - 1, len(records))

    def smooth(values):
        return np.convolve(values, np.ones(window) / window, mode="valid")

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.5), layout="constrained")
    for values, label, color in ((d_losses, "Discriminator", "C0"), (g_losses, "Generator", "C1")):
        left.plot(values, color=color, alpha=0.2, linewidth=0.5)
        left.plot(steps, smooth(values), color=color, label=label)
    left.axhline(2 * math.log(2), color="C0", linestyle="dashed", linewidth=1)
    for values, label, color in ((right_on_real, "real images", "C2"), (right_on_fake, "generated images", "C3")):
        right.plot(steps, smooth(values), color=color, label=label)
    left.set(title="Training losses", xlabel="step")
    right.set(title="Share on which D is right", xlabel="step", ylim=(0, 1))
    left.legend()
    right.legend()
    save_figure(figure, path)
    return figure


def show_beside(sets):
    """Draw sets, {title: uint8 images (count, height, width, 3)}, each as a grid of six columns, side by side."""
    figure, axes = plt.subplots(1, len(sets), figsize=(4.5 * len(sets), 4.8), layout="constrained")
    for axis, (title, images) in zip(axes, sets.items()):
        axis.imshow(grid(images, columns=6), interpolation="nearest")
        axis.set_title(title)
        axis.set_axis_off()
    return figure


class LiveGrid:
    """One display in the notebook that shows the newest samples in place of the ones before."""

    def __init__(self):
        self.handle = None

    def show(self, images, title):
        """Show uint8 images (count, height, width, 3), eight a row."""
        figure = show_faces(images, title=title)
        plt.close(figure)
        if self.handle:
            self.handle.update(figure)
        else:
            self.handle = display(figure, display_id=True)


def save_animation(frames, path, milliseconds=400):
    """Write uint8 arrays (height, width, 3) as an animated PNG that plays them in a loop and rests on the last."""
    pictures = [Image.fromarray(frame) for frame in frames]
    with whole_file(path) as file:
        pictures[0].save(file, format="PNG", save_all=True, append_images=pictures[1:], loop=0,
                         duration=[milliseconds] * (len(pictures) - 1) + [5 * milliseconds])


# --- Training runs ----------------------------------------------------------------------------------------------------

LOCKS = []  # of the runs of this process: a lock ends with the last reference to it


def start_run(output_dir, resume):
    """The folder output_dir as a Path, made and locked for this process until it ends.

    A run that is already there is moved aside (to output_dir-1, -2, ...), unless resume goes on with it. Raises
    ValueError where another process runs in it and OSError where it cannot be made."""
    run = Path(os.path.expanduser(output_dir))
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(run.with_name(f".{run.name}.lock"), is_singleton=True, timeout=0)
        lock.acquire()
        LOCKS.append(lock)
        if not resume and (run / "checkpoint.pt").exists():
            aside = next(p for n in itertools.count(1) if not (p := run.with_name(f"{run.name}-{n}")).exists())
            run.rename(aside)
            print(f"The run that was in {run} is now in {aside}.")
        run.mkdir(exist_ok=True)
        for old in (run / "metrics.json", *run.glob("*.partial")):  # partial: of a run that was killed
            old.unlink(missing_ok=True)
    except filelock.Timeout as error:
        raise ValueError(f"Another run is writing to {run}; wait for its end or choose another output_dir.") from error
    except OSError as error:
        raise OSError(f"output_dir {str(run)!r} cannot be used ({error.strerror or error}).") from error
    return run


def collect(recent, records, path):
    """Move the rows in recent (tensors on the device) to the end of records (lists of float), in one transfer.

    Raises FloatingPointError where one is NaN or infinite: from there the networks are lost, the checkpoint is not."""
    if not recent:
        return
    rows = torch.stack(recent).tolist()
    recent.clear()
    for number, row in enumerate(rows):
        if not all(map(math.isfinite, row)):
            last = (records + rows[:number])[-1:]
            raise FloatingPointError(
                f"The losses are no longer finite at step {len(records) + number + 1} (before: "
                f"{', '.join(f'{v:.3g}' for v in last[0][:2]) if last else 'none'}). The last good state is in {path}"
                f"{'' if Path(path).exists() else ', once an epoch is complete'}; try lower learning rates.")
    records += rows


def epoch_line(epoch, n_epochs, records, batch_size, seconds):
    """One line of text on the steps of an epoch, rows (g_loss, d_loss, share right on real, share right on fake)."""
    g_loss, d_loss, on_real, on_fake = np.mean(records, axis=0)
    won = "  D has won: its loss is near zero, and G learns nothing" if d_loss < 0.01 else ""
    return (f"epoch {epoch:3}/{n_epochs}  loss of D {d_loss:.3f}, of G {g_loss:.3f}  D right on real {on_real:.0%}, "
            f"on fake {on_fake:.0%}  {len(records) * batch_size / seconds:.0f} images/s{won}")


def first_and_last(records):
    """A Markdown table of rows (g_loss, d_loss, share right on real, share right on fake): means of two tenths."""
    tenth = max(1, len(records) // 10)
    names = "loss of G", "loss of D", "D right on real", "D right on generated"
    means = zip(names, np.mean(records[:tenth], axis=0), np.mean(records[-tenth:], axis=0))
    return "\n".join(["| | first tenth | last tenth |", "|---|---|---|",
                      *(f"| {name} | {first:.2f} | {last:.2f} |" for name, first, last in means)])


@contextlib.contextmanager
def interruptible():
    """Inside, the first interrupt (the notebook's stop button, Ctrl-C) sets the yielded event and lets the step end.

    A second one interrupts at once, as anywhere else."""
    stop, usual = threading.Event(), signal.getsignal(signal.SIGINT)

    def remember(number, frame):
        stop.set()
        signal.signal(signal.SIGINT, usual)

    mine = threading.current_thread() is threading.main_thread()  # only the main thread may set handlers
    if mine:
        signal.signal(signal.SIGINT, remember)
    try:
        yield stop
    finally:
        if mine:
            signal.signal(signal.SIGINT, usual)


def random_state(device):
    """The state of torch's generators on the CPU and on device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(state, device):
    """Put torch's generators back into a random_state."""
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[device.type])


# On going on from a checkpoint. dataset may be another path to the same faces, which fingerprint tells.
MAY_CHANGE = {"output_dir", "n_epochs", "print_every", "device", "precision", "fid", "resume", "dataset"}


def fingerprint(loader):
    """A text that tells one set of training faces from another: their number, and a checksum of the first 1,000."""
    return f"{len(loader.dataset)} faces with checksum {zlib.crc32(as_pictures(loader, 1000).tobytes()):08x}"


def save_checkpoint(path, parts, parameters, **more):
    """Write to path the state of parts (name: network or optimizer), the parameters, and plain values or tensors."""
    state = {"parts": {name: part.state_dict() for name, part in parts.items()}, "parameters": parameters, **more}
    with whole_file(path) as file:
        torch.save(state, file)


def load_checkpoint(path, parts, parameters, **same):
    """Put the checkpoint's state into parts and return all of it.

    Raises ValueError with one sentence, before anything is changed, where the file is missing, is no checkpoint, or was
    made with other parameters or other values of same (n_epochs and such may change: that only goes on for longer)."""
    try:
        state = dict(torch.load(path, map_location="cpu", weights_only=True))
        kept = {**state["parameters"], **{name: state[name] for name in same}}
        wanted = {**parameters, **same}
    except FileNotFoundError:
        raise ValueError(f"there is no {path} to go on from; start without it (resume false, start_from \"\").") from None
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} is no checkpoint of this notebook, or is damaged; move it away and start without it "
                         "(resume false, start_from \"\").") from error
    other = [f"{name} was {kept.get(name)!r} and is {wanted.get(name)!r}" for name in wanted
             if name not in MAY_CHANGE and kept.get(name) != wanted.get(name)]
    if other:
        raise ValueError(f"{path} was made with other settings: {'; '.join(other)}. Set them back, or start "
                         "without it (resume false, start_from \"\").")
    try:
        for name, part in parts.items():
            copy.deepcopy(part).load_state_dict(state["parts"][name])  # a trial: none may change unless all can
    except Exception as error:
        raise ValueError(f"{path} does not hold the state of these networks and optimizers; move it away and start "
                         "without it (resume false, start_from \"\").") from error
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    return state


def load_networks(folder, parts, parameters):
    """Put the networks that the run in folder has reached into parts, a dict of the checkpoint's names and networks.

    Raises ValueError with one sentence, before anything is changed, where it holds none or they have other shapes."""
    shape = {name: parameters[name] for name in ("image_size", "z_size", "d_conv_dim", "g_conv_dim")}
    load_checkpoint(Path(os.path.expanduser(folder)) / "checkpoint.pt", parts, shape)


def save_generator(folder, G, z_size, conv_dim, image_size, **more):
    """Keep generator G in folder: its weights as generator.safetensors, what rebuilds it as generator.json."""
    weights = {name: value.detach().cpu().contiguous() for name, value in G.state_dict().items()}
    about = {"z_size": z_size, "conv_dim": conv_dim, "image_size": image_size, "z": "uniform in [-1, 1]", **more}
    with whole_file(Path(folder) / "generator.safetensors") as file:
        file.write(safetensors_bytes(weights))
    save_json(Path(folder) / "generator.json", about)


def keep_generator(run, folder="assets"):
    """Copy the generator of a finished run into folder, in half precision, with the run's metrics in generator.json.

    Raises FileNotFoundError with one sentence where there is no finished run."""
    run = Path(run)
    if not (run / "metrics.json").exists():
        raise FileNotFoundError(f"no run came to its end in {run}, it has no metrics.json; finish it with resume true.")
    about, metrics = (json.loads((run / f"{name}.json").read_text()) for name in ("generator", "metrics"))
    with safe_open(run / "generator.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}
    halves = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    with whole_file(Path(folder) / "generator.safetensors") as file:
        file.write(safetensors_bytes(halves))
    for path in ("dataset", "output_dir"):  # of this machine, and of no use on another
        metrics["parameters"].pop(path, None)
    metrics["parameters"]["start_from"] = Path(metrics["parameters"].get("start_from", "")).name
    save_json(Path(folder) / "generator.json", about | {"run": metrics})


def load_generator(folder, device="cpu"):
    """A function sample(count, seed=0, truncation=1.0) of the generator kept in folder.

    It gives uint8 faces (count, height, width, 3); truncation is a factor on z, and below 1 the faces move towards their
    mean. The layers are the notebook's Generator in eval mode, written as plain functions.
    Raises ValueError with one sentence where the folder holds no such generator."""
    folder = Path(folder)
    try:
        about = json.loads((folder / "generator.json").read_text())
        with safe_open(folder / "generator.safetensors", "pt") as file:
            w = {name: file.get_tensor(name).float().to(device) for name in file.keys()}
        z_size, stages = int(about["z_size"]), int(math.log2(int(about["image_size"]))) - 1
        last = [f"t_conv{stage}.0.weight" in w for stage in (stages, stages + 1)]
        if w["FC.weight"].shape[1] != z_size or last != [True, False]:
            raise ValueError("its files do not belong together")
    except Exception as error:
        raise ValueError(f"{folder} holds no generator of this notebook ({type(error).__name__}: {error}).") from error

    def forward(z):
        x = F.linear(z, w["FC.weight"], w["FC.bias"])
        x = F.relu(x.view(len(z), -1, 2, 2))
        for stage in range(1, stages + 1):
            x = F.conv_transpose2d(x, w[f"t_conv{stage}.0.weight"], stride=2, padding=1)
            if stage < stages:
                norm = f"t_conv{stage}.1."
                x = F.relu(F.batch_norm(x, w[norm + "running_mean"], w[norm + "running_var"], w[norm + "weight"],
                                        w[norm + "bias"]))
        return torch.tanh(x)

    def sample(count, seed=0, truncation=1.0):
        z = truncation * (2 * torch.rand(count, z_size, generator=torch.Generator().manual_seed(seed)) - 1)
        with torch.no_grad():
            return np.concatenate([to_uint8(forward(part.to(device))) for part in z.split(256)])

    return sample


# --- Measures ---------------------------------------------------------------------------------------------------------

def laplacian_pyramid(images, smallest=16):
    """Images (count, 3, size, size) as their details at each scale down to smallest (Burt and Adelson 1983)."""
    taps = torch.tensor([1., 4., 6., 4., 1.]) / 16
    kernel = torch.outer(taps, taps).expand(3, 1, 5, 5)
    levels = []
    while images.shape[-1] > smallest:
        small = F.conv2d(F.pad(images, (2,) * 4, mode="reflect"), kernel, stride=2, groups=3)
        levels.append(images - F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False))
        images = small
    return levels + [images]


def sliced_wasserstein(a, b, patches=16, directions=128, seed=0):
    """Sliced Wasserstein distance x1000 between two equally many uint8 images (count, height, width, 3): 0 is equal.

    Random patches of 7x7 from each level of a Laplacian pyramid, normalised by channel, projected on random directions
    and sorted: the mean absolute difference, averaged over levels (Karras et al. 2018, Progressive Growing, section 5).
    """
    generator, distances = torch.Generator().manual_seed(seed), []
    both = [laplacian_pyramid(torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255) for x in (a, b)]
    for level_a, level_b in zip(*both):
        size = level_a.shape[-1]
        corner = torch.randint(0, size - 6, (2, len(a) * patches), generator=generator)
        index = torch.arange(len(a)).repeat_interleave(patches)
        rows, columns = (corner[i][:, None] + torch.arange(7) for i in (0, 1))
        axes = F.normalize(torch.randn(directions, 7 * 7 * 3, generator=generator), dim=1)
        projected = []
        for level in (level_a, level_b):
            x = level.permute(0, 2, 3, 1)[index[:, None, None], rows[:, :, None], columns[:, None, :]]
            x = x.sub_(x.mean((0, 1, 2))).div_(x.std((0, 1, 2)) + 1e-6)
            projected.append(np.sort((axes @ x.flatten(1).T).numpy(), axis=1))
        distances.append(float(np.abs(projected[0] - projected[1]).mean()))
    return 1000 * sum(distances) / len(distances)


def inception_distances(a, b, device="cpu", **options):
    """{"fid": ..., "kid": ...} between two sets of uint8 images (count, height, width, 3), by the package torch-fidelity.

    Fréchet (Heusel et al. 2017, eq. 6) and kernel distance (Bińkowski et al. 2018), 0 is equal, of what an Inception
    network trained on ImageNet sees. torch-fidelity scales the images to 299x299 as the first implementation does, and
    downloads the network once; options go to its calculate_metrics. Raises OSError with one sentence where the network
    cannot be had."""
    from torch_fidelity import calculate_metrics
    inputs = [Subset(torch.from_numpy(images).permute(0, 3, 1, 2), range(len(images))) for images in (a, b)]
    subset = min(1000, len(a), len(b))
    try:
        found = calculate_metrics(input1=inputs[0], input2=inputs[1], fid=True, kid=True, kid_subset_size=subset,
                                  cuda=torch.device(device).type == "cuda", cache=False, save_cpu_ram=True,
                                  verbose=False, **options)
    except (OSError, HTTPException) as error:
        raise OSError(f"FID and KID need a network that could not be downloaded ({reason(error)}); set fid to false; "
                      "with resume true nothing is trained again.") from error
    return {"fid": found["frechet_inception_distance"], "kid": found["kernel_inception_distance_mean"]}


def diversity(images):
    """Mean distance between two of the uint8 images (count, height, width, 3), as nearest measures it."""
    half = len(images) // 2
    a, b = (i.reshape(half, -1).astype(np.float32) / 255 for i in (images[:half], images[half:2 * half]))
    return float(np.sqrt(((a - b) ** 2).mean(axis=1)).mean())


def nearest(queries, images):
    """For each uint8 query (n, height, width, 3) the index of the nearest image and its distance.

    Distance: root mean square difference of pixel values in [0, 1]."""
    q = torch.from_numpy(queries.reshape(len(queries), -1)).float() / 255
    best, indices = torch.full((len(q),), math.inf), torch.zeros(len(q), dtype=torch.long)
    for start in range(0, len(images), 4096):  # as floats all of them would take four times the memory
        x = torch.from_numpy(images[start:start + 4096].reshape(-1, q.shape[1])).float() / 255
        distances, found = torch.cdist(q, x).min(dim=1)
        indices = torch.where(distances < best, start + found, indices)
        best = torch.minimum(best, distances)
    return indices.numpy(), best.numpy() / math.sqrt(q.shape[1])
