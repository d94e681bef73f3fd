"""Makes of an image file's bytes the JPEG that is stored, or says why it cannot be.

A baseline JPEG of one or three components whose every bit decodes is kept byte for byte. PNG, WebP,
GIF, BMP, TIFF and JPEGs that decoders on the GPU refuse or misread (CMYK, progressive, arithmetic,
RGB-coded, EXIF-rotated) are re-encoded once at quality 95 without chroma subsampling (4:2:0
destroys small coloured shapes). Sizes are judged from headers alone, before a pixel is decoded.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, ImageOps

from dsvlp.errors import DataError

MAX_PIXELS = 1 << 26  # 67 megapixels
MIN_SIDE = 8
QUALITY = 95
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_LOSSY_MODES = {"CMYK", "YCCK", "LAB", "HSV"}

# What Pillow's decoders raise on damaged input; each was seen by the fuzz test or in its source.
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class BadImage(DataError):
    """An image that cannot be stored.

    Attributes:
        reason: a few words, the same for all images of this kind: reports count by it.
        detail: what was found in this image.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[type, tuple[str, str]]:  # type: ignore[override]
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True)
class Normalised:
    """A JPEG to store, its size in pixels, and what had to be changed (empty: kept byte for byte)."""

    jpeg: bytes
    height: int
    width: int
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Header:
    """What a JPEG's markers say before its first scan."""

    height: int
    width: int
    bits: int
    components: int
    process: str  # "baseline", "progressive", "arithmetic", "lossless"
    rgb_coded: bool = False
    rotated: bool = False


def normalise(data: bytes, max_pixels: int = MAX_PIXELS) -> Normalised:
    """Returns the JPEG to store of an image file's bytes.

    Raises:
        BadImage: the bytes are no image, damaged, too large or too small.
    """
    if not data:
        raise BadImage("empty file", "0 bytes")
    if not data.startswith(b"\xff\xd8"):
        return _reencode(data, max_pixels, ())
    header = read_header(data)
    _check_size(header.height, header.width, max_pixels)
    changes = _needed_changes(header)
    if changes:
        return _reencode(data, max_pixels, changes)
    try:
        # All entropy-coded data is read; only the inverse transform is done at 1/8: damage shows.
        simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=True, min_height=1, min_width=1, strict=True)
    except ValueError as error:
        raise BadImage("truncated or corrupt image", str(error)) from error
    return Normalised(data, header.height, header.width)


def read_header(data: bytes) -> Header:
    """Returns what the markers of a JPEG say, from its first bytes up to its first scan.

    Raises:
        BadImage: the markers are cut or damaged.
    """
    frame: tuple[int, int, int, int, str] | None = None
    rgb_coded = rotated = False
    for marker, body in segments(data)[0]:
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            rotated = _orientation(body) not in (0, 1)
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            rgb_coded = body[11] == 0
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if len(body) < 6:
                raise BadImage("truncated or corrupt image", f"a frame header of {len(body)} bytes")
            bits, height, width, components = struct.unpack(">BHHB", body[:6])
            frame = (height, width, bits, components, _process(marker))
    if frame is None:
        raise BadImage("truncated or corrupt image", "a JPEG without a frame header")
    return Header(*frame, rgb_coded=rgb_coded and frame[3] == 3, rotated=rotated)


def segments(data: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """Returns (marker, body) of a JPEG's segments before its first scan, and the byte where that begins.

    Raises:
        BadImage: the markers are cut or damaged.
    """
    found: list[tuple[int, bytes]] = []
    at = 2
    while True:
        while data[at : at + 2] == b"\xff\xff":
            at += 1
        if at + 4 > len(data) or data[at] != 0xFF:
            raise BadImage("truncated or corrupt image", f"no marker at byte {at} of {len(data)}")
        marker = data[at + 1]
        if marker in (0xDA, 0xD9):  # start of scan, end of image
            return found, at
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # without a body
            at += 2
            continue
        (length,) = struct.unpack(">H", data[at + 2 : at + 4])
        if length < 2 or at + 2 + length > len(data):
            raise BadImage("truncated or corrupt image", f"a segment at byte {at} leaves the file")
        found.append((marker, data[at + 4 : at + 2 + length]))
        at += 2 + length


def _process(marker: int) -> str:
    if marker in (0xC0, 0xC1):
        return "baseline"
    if marker == 0xC2:
        return "progressive"
    return "arithmetic" if marker >= 0xC9 and marker not in (0xCB, 0xCF) else "lossless"


def _orientation(exif: bytes) -> int:
    tags = Image.Exif()
    try:
        tags.load(exif)
        return int(tags.get(0x0112, 1))
    except DECODE_ERRORS:  # unreadable EXIF says nothing about the picture
        return 1


def _needed_changes(header: Header) -> tuple[str, ...]:
    if header.bits != 8 or header.process == "lossless" or header.components not in (1, 3, 4):
        detail = f"{header.process} JPEG of {header.bits} bits and {header.components} components"
        raise BadImage("unsupported image", detail)
    changes = []
    if header.process != "baseline":
        changes.append(f"{header.process} JPEG")
    if header.components == 4:
        changes.append("CMYK JPEG")
    if header.rgb_coded:
        changes.append("RGB-coded JPEG")
    if header.rotated:
        changes.append("EXIF-rotated")
    return tuple(changes)


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise BadImage("above the pixel limit", f"{width}x{height} pixels, the limit is {max_pixels}")
    if min(height, width) < MIN_SIDE:
        raise BadImage(f"smaller than {MIN_SIDE} pixels", f"{width}x{height} pixels")


def _reencode(data: bytes, max_pixels: int, changes: tuple[str, ...]) -> Normalised:
    """Returns the image as a baseline JPEG of RGB, upright, over white where it was transparent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large sizes and odd metadata; both are judged here
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise BadImage("above the pixel limit", str(error)) from error
        except DECODE_ERRORS as error:
            raise BadImage("not an image", f"begins with {data[:8]!r}") from error
        _check_size(image.height, image.width, max_pixels)
        try:
            changes = changes or _foreign(image)
            upright = _to_rgb(ImageOps.exif_transpose(image))
        except DECODE_ERRORS as error:
            raise BadImage("truncated or corrupt image", str(error) or type(error).__name__) from error
    out = io.BytesIO()
    upright.save(out, "JPEG", quality=QUALITY, subsampling=0)
    return Normalised(out.getvalue(), upright.height, upright.width, changes)


def _foreign(image: ImageFile.ImageFile) -> tuple[str, ...]:
    """Returns what an image that is no JPEG has to be changed from."""
    changes = [str(image.format)]
    if image.mode.startswith("I") or image.mode == "F":
        changes.append("16-bit")
    if image.mode in _LOSSY_MODES:
        changes.append(image.mode)
    if image.getexif().get(0x0112, 1) not in (0, 1):
        changes.append("EXIF-rotated")
    return tuple(changes)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Returns 16-bit grey values as 8 bits. Pillow's own conversion clips at 255 and gives white."""
    if values.dtype.kind == "f":
        return np.clip(np.nan_to_num(values), 0, 255).astype(np.uint8)
    return (np.clip(values, 0, 65535) >> 8).astype(np.uint8)
