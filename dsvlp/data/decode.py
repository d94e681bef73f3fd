"""Decoding JPEGs, strictly: pixels or a reason, never garbage.

The decoder here runs on the CPU: it releases the GIL, is called image by image from the loader's threads,
returns pixels or a `BadImage`, and never raises on what stands in a file. Those in `decoders/` take a micro-
batch's JPEGs to a GPU at once; what they cannot decode comes back to this one. A backend's `name` is part of
the loader's state: pixels are promised to be equal within one backend only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Protocol, runtime_checkable

import numpy as np
import simplejpeg
import torch
from torch import Tensor


@dataclass(frozen=True)
class BadImage:
    """Why an image cannot be used."""

    reason: str


@dataclass(frozen=True)
class EncodedImage:
    """What a backend decodes.

    Attributes:
        jpeg: uint8 [bytes].
        height, width: pixels that the data set promises.
        least_height, least_width: a backend may decode at 1/2, 1/4 or 1/8 of the size while the
            result is at least this large.
    """

    jpeg: np.ndarray
    height: int
    width: int
    least_height: int
    least_width: int


class Decoder(Protocol):
    """A backend on the CPU.

    Attributes:
        name: backend and version.
    """

    name: str

    def decode(self, images: Sequence[EncodedImage]) -> list[np.ndarray | BadImage]:
        """Returns RGB pixels uint8 [H, W, 3] or what is wrong, one for each image."""


@runtime_checkable
class DeviceDecoder(Protocol):
    """A backend on a GPU. One thread calls it at a time, with the stream current that the pixels are for.

    Attributes:
        name: backend and version.
        device: where the pixels come to lie.
    """

    name: str
    device: torch.device

    def decode(self, jpegs: Sequence[Tensor]) -> list[Tensor | None]:
        """Returns RGB pixels uint8 [3, H, W] for each, or None for one that it cannot decode.

        Args:
            jpegs: uint8 [bytes] each, on the CPU; not changed before the call returns.

        Raises:
            RuntimeError: one of them is bad, and the backend gives up the list.
        """


class CPUDecoder:
    """Decodes by simplejpeg with the fast DCT (pixel-identical to FFCV's own decoder), one by one."""

    name = f"simplejpeg {version('simplejpeg')}"

    def decode(self, images: Sequence[EncodedImage]) -> list[np.ndarray | BadImage]:
        """Returns RGB pixels uint8 [H, W, 3] or what is wrong, one for each image."""
        return [_decode(image) for image in images]


def _decode(image: EncodedImage) -> np.ndarray | BadImage:
    if not image.jpeg.size:
        return BadImage("it has no bytes")
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(image.jpeg, strict=True)
        if (height, width) != (image.height, image.width):
            return BadImage(f"it has {width} x {height} pixels, its row says {image.width} x {image.height}")
        factor = _factor(image)
        return simplejpeg.decode_jpeg(
            image.jpeg,
            fastdct=True,
            min_height=-(-height // factor),
            min_width=-(-width // factor),
            min_factor=factor,
            strict=True,
        )
    except ValueError as error:
        return BadImage(str(error))


def _factor(image: EncodedImage) -> int:
    """Returns by what the decoder may divide the size.

    Powers of two alone: libjpeg-turbo's other factors (3/8, 7/8) have no SIMD code and cost more than
    they save.
    """
    for factor in (8, 4, 2):
        if image.height >= factor * image.least_height and image.width >= factor * image.least_width:
            return factor
    return 1
