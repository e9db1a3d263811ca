"""What all pages share: pictures and names."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from nag.shift.page import short, thumbnails


def opened(address):
    kind, _, text = address.partition(";base64,")
    return kind, Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_are_kept_bit_by_bit(channels):
    images = np.random.default_rng(0).integers(0, 256, (5, 12, 9, channels), dtype=np.uint8)
    found = [opened(address) for address in thumbnails(images, 3)]
    assert [kind for kind, _ in found] == ["data:image/png"] * 3
    for (_, picture), image in zip(found, images, strict=False):
        np.testing.assert_array_equal(np.asarray(picture).reshape(image.shape), image)


def test_photographs_are_made_small():
    images = np.random.default_rng(0).integers(
        0, 256, (1, 512, 300, 3), dtype=np.uint8
    )  # noise is the worst case
    (address,) = thumbnails(images)
    kind, picture = opened(address)
    assert (kind, picture.size) == ("data:image/webp", (131, 224))
    assert len(address) < 60_000


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("plain", "plain"),
        ("nag:scale=0.5|1", "nag: scale=0.5|1"),
        (
            "merged:network=/a/b/student_0,strength=0.5+calibrated",
            "merged: student_0, strength=0.5+calibrated",
        ),
        ("direction:head=a/direction,scale=1", "direction: direction, scale=1"),
    ],
)
def test_a_method_is_read_without_its_folders(method, said):
    assert short(method) == said
