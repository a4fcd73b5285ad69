"""Draw faces from the generator of a run into a zip of JPEGs laid out as the course's.

    python -m tools.zip_faces RUN ZIP
"""
import argparse
import io
import zipfile

from PIL import Image

import helpers
from plumbing import files


def zip_faces(run, path, count=7500):
    """Sample count faces from the generator kept in the folder run into a zip at path."""
    faces = helpers.load_generator(run)(count)
    with files.whole_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for number, face in enumerate(faces):
            jpeg = io.BytesIO()
            Image.fromarray(face).save(jpeg, "JPEG", quality=92, optimize=True)
            entry = zipfile.ZipInfo(f"processed_celeba_small/celeba/{number:06d}.jpg")  # a fixed date: same zip again
            archive.writestr(entry, jpeg.getvalue())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("zip", help="the file to write")
    options = parser.parse_args()
    try:
        zip_faces(options.run, options.zip)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
