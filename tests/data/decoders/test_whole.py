import io

import numpy as np
import pytest
from PIL import Image

from dsvlp.data.decoders.whole import is_whole
from tests.data.raw_files import encoded, pixels

GOOD = encoded(pixels(1))  # 24 x 32
SCAN = GOOD.index(b"\xff\xda")


def whole(data: bytes, height: int = 24, width: int = 32) -> bool:
    return is_whole(np.frombuffer(data, np.uint8), height, width)


@pytest.mark.parametrize(
    "options",
    [{}, {"quality": 20}, {"subsampling": 0}, {"optimize": True}, {"restart_marker_blocks": 2}],
)
def test_what_the_writer_keeps_is_whole(options):
    assert whole(encoded(pixels(2), **options))


def test_grey_ones_and_those_with_a_thumbnail_are_whole():
    assert whole(encoded(pixels(2)[..., 0]))
    exif = Image.Exif()
    exif[0x9286] = GOOD  # a whole JPEG, with its own end of image, inside the header
    assert whole(encoded(pixels(2), exif=exif))


def rgb_coded() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(2)).save(buffer, "JPEG", keep_rgb=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        b"no picture at all" * 9,
        encoded(pixels(2), "PNG"),
        encoded(pixels(2), progressive=True),
        encoded(Image.fromarray(pixels(2)).convert("CMYK")),
        rgb_coded(),
        GOOD[:SCAN],
        GOOD[: SCAN + 40],
        GOOD[:-2],
        GOOD + GOOD,
        GOOD[: SCAN + 30] + b"\xff\xc4" + GOOD[SCAN + 32 :],
    ],
    ids=[
        *("empty", "two bytes", "text", "png", "progressive", "cmyk", "rgb", "no scan", "cut in its scan"),
        *("no end", "two images", "a marker inside"),
    ],
)
def test_anything_else_is_not(data):
    assert not whole(data)


def test_an_image_of_another_size_than_its_row_is_not():
    assert not whole(GOOD, 32, 24)


def test_a_lost_restart_interval_shows():
    data = encoded(pixels(2, 64, 64), restart_marker_blocks=2)
    first, second = data.index(b"\xff\xd1"), data.index(b"\xff\xd2")
    assert whole(data, 64, 64) and not whole(data[:first] + data[second:], 64, 64)


def test_no_byte_that_is_cut_off_leaves_it_whole():
    assert not any(whole(GOOD[:length]) for length in range(len(GOOD)))
