"""What becomes of an image's bytes: kept, encoded anew, or refused with a reason."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from dsvlp.data.jpeg import BadImage, normalise, read_header
from tests.data.raw_files import encoded, pixels

BASELINE = encoded(pixels(1))


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"quality": 20}, {"optimize": True}])
def test_a_baseline_jpeg_is_kept_byte_for_byte(options: dict) -> None:
    data = encoded(pixels(2), **options)
    stored = normalise(data)
    assert stored.jpeg == data and stored.changes == ()
    assert (stored.height, stored.width) == (24, 32)


def test_a_grey_baseline_jpeg_is_kept() -> None:
    data = encoded(pixels(2)[..., 0])
    assert normalise(data).jpeg == data


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # the picture is to be turned by 90 degrees
    return encoded(pixels(3), exif=exif)


FOREIGN = {
    "PNG": (encoded(pixels(3), "PNG"), ("PNG",)),
    "palette": (encoded(Image.fromarray(pixels(3)).quantize(32), "PNG"), ("PNG",)),
    "WEBP": (encoded(pixels(3), "WEBP", lossless=True), ("WEBP",)),
    "BMP": (encoded(pixels(3), "BMP"), ("BMP",)),
    "GIF": (encoded(pixels(3), "GIF"), ("GIF",)),
    "progressive": (encoded(pixels(3), progressive=True), ("progressive JPEG",)),
    "CMYK": (encoded(Image.fromarray(pixels(3)).convert("CMYK")), ("CMYK JPEG",)),
    "EXIF": (rotated(), ("EXIF-rotated",)),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_images_become_baseline_rgb_at_444_and_are_named(name: str) -> None:
    data, changes = FOREIGN[name]
    stored = normalise(data)
    assert stored.changes == changes
    header = read_header(stored.jpeg)
    assert (header.process, header.components, header.rotated) == ("baseline", 3, False)
    assert (header.height, header.width) == (stored.height, stored.width)
    assert Image.open(io.BytesIO(stored.jpeg)).layer[0][1:3] == (1, 1)  # no chroma subsampling
    right = pixels(3) if name != "EXIF" else np.rot90(pixels(3), -1)
    tolerance = 6 if name in ("PNG", "WEBP", "BMP") else 40
    assert np.abs(decoded(stored.jpeg).astype(int) - right).mean() < tolerance
    assert normalise(stored.jpeg).changes == ()  # once is enough


def test_sixteen_bit_grey_keeps_its_brightness() -> None:
    ramp = np.linspace(0, 65535, 32).astype(np.uint16)[None].repeat(24, 0)
    stored = normalise(encoded(Image.fromarray(ramp), "PNG"))
    assert stored.changes == ("PNG", "16-bit")
    assert np.abs(decoded(stored.jpeg)[..., 0].astype(int) - (ramp >> 8)).max() < 12


def test_transparent_pixels_become_white() -> None:
    layer = np.zeros((24, 32, 4), np.uint8)
    assert decoded(normalise(encoded(layer, "PNG")).jpeg).min() > 250


def huge_header(process: int = 0xC0) -> bytes:
    frame = struct.pack(">HBHHB", 17, 8, 60000, 60000, 3) + bytes([1, 17, 0, 2, 17, 0, 3, 17, 0])
    return b"\xff\xd8\xff" + bytes([process]) + frame + b"\xff\xda\x00\x02"


def huge_png() -> bytes:
    data = bytearray(encoded(pixels(1), "PNG"))
    data[16:24] = struct.pack(">II", 60000, 60000)
    return bytes(data)


BAD = {
    "empty": (b"", "empty file"),
    "half a file": (BASELINE[: len(BASELINE) // 2], "truncated or corrupt image"),
    "no end": (BASELINE[:-2], "truncated or corrupt image"),
    "header only": (BASELINE[:30], "truncated or corrupt image"),
    "half a PNG": (encoded(pixels(1), "PNG")[:200], "truncated or corrupt image"),
    "text": (b"<html>404 not found</html>", "not an image"),
    "1x1": (encoded(pixels(1, 1, 1)), "smaller than 8 pixels"),
    "1x1 PNG": (encoded(pixels(1, 1, 1), "PNG"), "smaller than 8 pixels"),
    "gigapixel JPEG": (huge_header(), "above the pixel limit"),
    "gigapixel progressive": (huge_header(0xC2), "above the pixel limit"),
    "lossless JPEG": (
        huge_header(0xC3).replace(struct.pack(">HH", 60000, 60000), b"\0\x18\0\x20"),
        "unsupported image",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_refused_with_its_reason(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(BadImage) as caught:
        normalise(data)
    assert caught.value.reason == reason


def test_a_gigapixel_png_is_refused_before_a_pixel_is_decoded() -> None:
    with pytest.raises(BadImage):  # its checksum does not fit either: no 10 GB are asked for
        normalise(huge_png())


def test_corrupt_scan_data_never_passes_as_kept() -> None:
    """Cuts at every tenth byte of the picture: each is refused, none is stored."""
    for end in range(2, len(BASELINE) - 2, 10):
        with pytest.raises(BadImage):
            normalise(BASELINE[:end])


@pytest.mark.parametrize("start", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_any_damage_ends_in_an_image_or_a_reason(start: str) -> None:
    """A seeded fuzz: changed, cut and doubled bytes; nothing but BadImage may escape."""
    rng = np.random.default_rng(sum(start.encode()))
    whole = np.frombuffer(encoded(pixels(5), start), np.uint8)
    for _ in range(150):
        data = whole.copy()
        at = rng.integers(0, len(data), rng.integers(1, 12))
        data[at] = rng.integers(0, 256, len(at))
        cut = data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else data
        try:
            stored = normalise(cut.tobytes())
        except BadImage as error:
            assert error.reason
        else:
            assert decoded(stored.jpeg).shape[:2] == (stored.height, stored.width)
