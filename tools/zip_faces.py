"""Draw faces from the generator of a run into a zip of JPEGs laid out as the course's, no two of them alike.

    python -m tools.zip_faces RUN ZIP PHOTOS --truncation 0.96

Alike is nearer than 1 in 10,000 pairs of PHOTOS, the zip or folder of images that the run was trained on. Leaving faces
out thins the middle of the set, where they are many, and widens the spread of its pixels; truncation narrows it."""
import argparse
import functools
import io
import zipfile

import numpy as np
import torch
from PIL import Image

import helpers
from plumbing import files, photos


def unlike(sample, count, radius, part=500):
    """(count images of sample, how many were drawn for them), each farther than radius (rms) from all before it.

    sample(count, seed) gives images, uint8 (count, height, width, 3). Raises ValueError if it repeats itself so often
    that of ten times as many as are wanted too few are left."""
    kept, drawn = sample(1)[:0], 0
    while len(kept) < count:
        if drawn >= 10 * max(count, part):
            raise ValueError(f"of {drawn:,} faces drawn only {len(kept):,} are farther apart than {radius:.3f}: this "
                             "generator repeats itself.")
        new, drawn = sample(part, seed=drawn // part), drawn + part
        if len(kept):
            new = new[helpers.nearest(new, kept)[1] > radius]
        x = torch.from_numpy(new).flatten(1).float() / 255
        near, some = torch.cdist(x, x) / x.shape[1] ** 0.5 <= radius, []
        for face in range(len(new)):
            if not near[face, some].any():
                some.append(face)
        kept = np.concatenate([kept, new[some]])
    return kept[:count], drawn


def zip_faces(run, path, dataset, truncation=1.0, count=7500):
    """Sample count faces from the generator kept in the folder run into a zip at path; prints what was left out.

    No two are nearer than 1 in 10,000 pairs of the images of dataset. truncation is a factor on z, as that of
    helpers.load_generator. Raises ValueError as unlike does."""
    sample = helpers.load_generator(run)
    data = photos.load_images(photos.prepare_data(dataset), sample(1).shape[1], limit=2000)
    radius = helpers.close_radius(data.permute(0, 2, 3, 1).contiguous().numpy())
    faces, drawn = unlike(functools.partial(sample, truncation=truncation), count, radius)
    with files.whole_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for number, face in enumerate(faces):
            jpeg = io.BytesIO()
            Image.fromarray(face).save(jpeg, "JPEG", quality=87, optimize=True)
            entry = zipfile.ZipInfo(f"processed_celeba_small/celeba/{number:06d}.jpg")  # a fixed date: same zip again
            archive.writestr(entry, jpeg.getvalue())
    print(f"{count:,} of {drawn:,} faces drawn: the others came too late or nearer than {radius:.3f} to one before.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("zip", help="the file to write")
    parser.add_argument("photos", help="the zip or folder of images that the run was trained on")
    parser.add_argument("--truncation", type=float, default=1.0, help="a factor on z, at most 1 (default: 1)")
    options = parser.parse_args()
    try:
        zip_faces(options.run, options.zip, options.photos, options.truncation)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
