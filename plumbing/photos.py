"""Faces from a zip, a folder or a download to one uint8 tensor."""
import contextlib
import hashlib
import os
import shutil
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import filelock
import numpy as np
import torch
from PIL import Image, ImageOps

from .files import download, whole_file

CELEBA_URL = ("https://s3.amazonaws.com/video.udacity-data.com/topher/2018/November/"
              "5be7eb6f_processed-celeba-small/processed-celeba-small.zip")
CELEBA_SHA256 = "2cd4fbba4b618faeb4be18c69da3a68ff6a163057d12ff321cb044fc51f416d3"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")  # what Pillow may take a file for, whatever its name is
# CelebA's own folder, and the 108x108 of its 178x218 pixels that show the face as the embedded faces do: as many as
# many DCGANs take (udacity/deep-learning, face_generation/helper.py), about the centre (89, 121) of Karras et al. 2018
# (tkarras/progressive_growing_of_gans, dataset_tool.py), which lies 12 pixels below the picture's own.
ALIGNED, FACE = "img_align_celeba", (35, 67, 143, 175)
DECODER = 3  # raise with every change of what decode gives: older caches are then ignored
WORTH_KEEPING = 1.0  # seconds of decoding above which the images are kept for the next time


def is_image_name(name):
    """True if name looks like an image that a person put there: not in __MACOSX, not hidden."""
    path = PurePosixPath(name.replace("\\", "/"))
    hidden = any(part == "__MACOSX" or part.startswith(".") and part != ".." for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def prepare_data(dataset, folder="data", url=CELEBA_URL, sha256=CELEBA_SHA256):
    """The folder of images that dataset stands for: a folder itself, an unpacked zip, or "celeba", downloaded.

    Raises FileNotFoundError, ValueError or OSError with one sentence if there is none."""
    if dataset == "celeba":
        dataset = download(url, Path(folder) / "processed-celeba-small.zip", sha256)
    path = os.path.expanduser(dataset)
    if os.path.isdir(path):
        return Path(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"dataset {str(dataset)!r} does not exist (looked in {Path.cwd()}); "
                                "give a zip file, a folder of images or \"celeba\".")
    return unzip(path, folder)


def unzip(path, folder="data"):
    """Unpack the images of the zip at path into a folder of their own under folder, once; return that folder.

    Its name carries a digest of the zip's table of contents, and it appears whole or not at all. zipfile keeps every
    entry inside it. Raises FileNotFoundError, ValueError or OSError with one sentence if the zip is not a file, is
    damaged, far too large or without images, or does not fit."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is neither a zip file nor a folder of images.")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir() and is_image_name(info.filename)]
            if not members:
                raise ValueError(f"it does not hold an image ({', '.join(sorted(SUFFIXES))})")
            size, unpacked = os.path.getsize(path), sum(info.file_size for info in members)
            if unpacked > 100 * size + 10**8:
                raise ValueError(f"it would unpack to {unpacked / size:.0f} times its size")
            contents = repr([(info.filename, info.CRC, info.file_size) for info in members])
            target = Path(folder) / f"{Path(path).stem[:50]}-{hashlib.sha256(contents.encode()).hexdigest()[:8]}"
            partial = target.with_name(f".{target.name}.partial")
            Path(folder).mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(f"{partial}.lock"):
                if not target.is_dir():
                    shutil.rmtree(partial, ignore_errors=True)  # from a run that was killed
                    try:
                        archive.extractall(partial, members)
                        partial.rename(target)
                    finally:
                        shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise OSError(f"{path} cannot be unpacked into {folder} ({error.strerror or error}).") from error
    except Exception as error:  # a damaged zip can raise anything
        raise ValueError(f"{path} cannot be used as a dataset: {' '.join(str(error).split())}.") from error
    return target


def decode(path, size):
    """The image at path as uint8 (size, size, 3), cropped to its middle square; None if it is not an image.

    Of a photograph in CelebA's own folder it is the square FACE. 64x64 becomes 32x32 by the mean of each 2x2 block.
    What is transparent becomes white; the first frame is taken."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.size == (178, 218) and ALIGNED in str(path.absolute()):
                image = image.crop(FACE)
            image.draft("RGB", (2 * size, 2 * size))  # a large JPEG is decoded at a fraction of its size
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits a pixel, which convert would clip to white
                image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                cut_out = image.convert("RGBA")
                image = Image.new("RGB", image.size, "white")
                image.paste(cut_out, mask=cut_out)
            method = Image.Resampling.BOX if min(image.size) >= 2 * size else Image.Resampling.BICUBIC
            return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), method))
    except Exception:  # Pillow raises nearly anything for junk
        return None


def face(path, size):
    """The one image at path, as decode gives it: uint8 (1, size, size, 3). Raises ValueError if it is not an image."""
    image = decode(path, size)
    if image is None:
        raise ValueError(f"{str(path)!r} is not an image that can be read; give the path of a JPEG or PNG file.")
    return image[None]


def check_faces(to_train, held_out, batch_size, data_dir):
    """Raises ValueError if so many images of data_dir to_train on are too few for one batch, or nothing can be measured
    against those held_out (count, 3, size, size)."""
    if to_train < batch_size or len(held_out) < 2:
        raise ValueError(f"{data_dir} holds {to_train + len(held_out)} images, seven in eight of them to train on: too few "
                         f"for a batch of {batch_size}; lower batch_size or use a larger dataset.")
    if any((held_out == some).all() for some in (held_out[:1], held_out[..., :1, :1])):
        raise ValueError(f"{data_dir} holds images that are all alike or without anything on them (every eighth was looked "
                         "at): nothing can be measured against them; use another dataset.")


def image_files(folder):
    """Path of every file below folder with an image's name, sorted; links to folders are not followed."""
    files = (path for path in Path(folder).rglob("*") if is_image_name(path.relative_to(folder).as_posix()))
    return sorted((path for path in files if path.is_file()), key=Path.as_posix)


def decode_all(files, size, limit):
    """The first limit images among files as uint8 (count, 3, size, size), and the indices of those that are not."""
    images, junk, count = np.empty((min(limit, len(files)), 3, size, size), np.uint8), [], 0
    chunks = [files[start:start + 64] for start in range(0, len(files), 64)]  # one file is too little for a thread
    with warnings.catch_warnings(), ThreadPoolExecutor(min(4, os.cpu_count())) as pool:
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        decoded = pool.map(lambda chunk: [decode(file, size) for file in chunk], chunks)
        for index, image in enumerate(image for chunk in decoded for image in chunk):
            if image is None:
                junk.append(index)
            else:
                images[count] = image.transpose(2, 0, 1)
                count += 1
            if count == limit:
                pool.shutdown(cancel_futures=True)
                break
    return images[:count], junk


def decode_once(files, size):
    """decode_all of all files; if it takes long it is kept in data/cache-*.npz, and comes from there the next time.

    A cache that cannot be read or written is done without: it only saves time. The three newest are kept."""
    stats = [(file.as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = repr((DECODER, size, stats)).encode()
    cache = Path("data") / f"cache-{hashlib.sha256(key).hexdigest()[:16]}.npz"
    with contextlib.suppress(Exception), np.load(cache) as kept:  # it may be missing or damaged
        return kept["images"], kept["junk"].tolist()
    start = time.perf_counter()
    images, junk = decode_all(files, size, len(files))
    if time.perf_counter() - start > WORTH_KEEPING and images.nbytes < 2**31:
        with contextlib.suppress(OSError):  # a full disk, or another run writes its own
            cache.parent.mkdir(exist_ok=True)
            with filelock.FileLock(f"{cache.parent}/.cache.lock", timeout=0):
                for older in sorted(cache.parent.glob("cache-*.npz"), key=os.path.getmtime)[:-2]:
                    older.unlink()
                with whole_file(cache) as file:
                    np.savez(file, images=images, junk=np.array(junk, int))
    return images, junk


def load_images(data_dir, image_size, limit=None):
    """Every image below data_dir, or the first limit, in order of name: uint8 (count, 3, image_size, image_size).

    Files that are not images, or have more than 89 million pixels, are left out and counted in a printed line. Raises
    FileNotFoundError if the folder does not exist and ValueError if it does not hold an image."""
    if not os.path.isdir(data_dir):
        raise FileNotFoundError(f"The data folder {str(data_dir)!r} does not exist (looked in {Path.cwd()}).")
    files = image_files(data_dir)
    images, junk = decode_once(files, image_size) if limit is None else decode_all(files, image_size, limit)
    if junk:
        first = ", ".join(repr(files[index].name)[1:-1] for index in junk[:3])  # repr: a name can hold anything
        print(f"Left out {len(junk)} of {len(images) + len(junk)} files that are not images: {first}"
              f"{', ...' if len(junk) > 3 else ''}")
    if not len(images):
        raise ValueError(f"The data folder {str(data_dir)!r} does not hold an image ({', '.join(sorted(SUFFIXES))}).")
    return torch.from_numpy(images)
