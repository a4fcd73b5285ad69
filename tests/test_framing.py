"""plumbing/photos.py: CelebA's own photographs are cropped to the face."""
from pathlib import Path

import pytest
from conftest import encoded
from odd_files import archive
from PIL import Image
from test_photos import put

from plumbing import photos


def framed(size=(178, 218)):
    """A picture that is red in the square of CelebA's faces, else blue."""
    picture = Image.new("RGB", size, "blue")
    picture.paste("red", (35, 67, 143, 175))
    return encoded("JPEG", picture, quality=95, subsampling=0)


@pytest.mark.parametrize("image_size", [32, 64, 128])
def test_celebas_photographs_are_cropped_to_the_face(image_size):
    put("celeba.zip", archive(("img_align_celeba/000001.jpg", framed())))
    put("img_align_celeba.zip", archive(("000001.jpg", framed())))
    put("img_align_celeba/000001.jpg", framed())
    for dataset in ("celeba.zip", "img_align_celeba.zip", "img_align_celeba"):
        red, green, blue = photos.load_images(photos.prepare_data(dataset), image_size)[0, :, 2:-2, 2:-2]
        assert red.min() > 240 and green.max() < 20 and blue.max() < 20


@pytest.mark.parametrize("name, size", [("others/1.jpg", (178, 218)), ("img_align_celeba/1.jpg", (218, 178)),
                                        ("img_align_celeba/1.jpg", (356, 436))])
def test_other_photographs_keep_their_middle_square(name, size):
    put(name, framed(size))
    corners = photos.load_images(Path(name).parent, 32)[0, 2, ::31, ::31]
    assert corners.min() > 240
