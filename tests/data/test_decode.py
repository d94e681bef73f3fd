import io

import numpy as np
import pytest
from PIL import Image

from dsvlp.data.decode import BadImage, CPUDecoder, EncodedImage
from tests.data.pictures_of_noise import jpeg, png

GOOD = jpeg(1, 48, 64)


def decode(data: bytes, height: int = 48, width: int = 64, least: tuple[int, int] = (48, 64)):
    return CPUDecoder().decode([EncodedImage(np.frombuffer(data, np.uint8), height, width, *least)])[0]


def test_pixels_are_those_of_pillow():
    expected = np.asarray(Image.open(io.BytesIO(GOOD)).convert("RGB")).astype(int)
    assert np.abs(decode(GOOD).astype(int) - expected).mean() < 1.5  # the fast DCT


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xd8", b"no picture at all" * 9, GOOD[: len(GOOD) // 2], GOOD[:-30], png(np.zeros((48, 64)))],
    ids=["empty", "two bytes", "text", "half", "cut at the end", "png"],
)
def test_what_is_no_whole_jpeg_becomes_a_reason(data):
    assert isinstance(decode(data), BadImage)


def test_damaged_bytes_never_become_pixels_that_differ_from_the_row():
    assert isinstance(decode(GOOD, height=64, width=48), BadImage)


def test_a_large_image_is_decoded_at_a_fraction_that_still_suffices():
    data = jpeg(2, 480, 640)
    assert decode(data, 480, 640, (120, 120)).shape == (120, 160, 3)
    assert decode(data, 480, 640, (121, 121)).shape == (240, 320, 3)
    assert decode(data, 480, 640, (300, 300)).shape == (480, 640, 3)


def test_one_bad_image_leaves_the_others_alone():
    good = EncodedImage(np.frombuffer(GOOD, np.uint8), 48, 64, 48, 64)
    bad = EncodedImage(np.zeros(9, np.uint8), 48, 64, 48, 64)
    first, second, third = CPUDecoder().decode([good, bad, good])
    assert isinstance(second, BadImage) and (first == third).all()
