"""Single images as evaluation sees them, outside of any data set: for predictions and probes.

Legend: I images, h x w an image's frame, H x W the canvas of all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dsvlp.data.augment import place_image, whole
from dsvlp.data.decode import BadImage, CPUDecoder, EncodedImage
from dsvlp.data.frames import Framing
from dsvlp.data.jpeg import BadImage as Unstorable
from dsvlp.data.jpeg import normalise
from dsvlp.errors import DataError


def read_picture(data: bytes, framing: Framing, name: str) -> Tensor:
    """Returns an image file of any format as a picture float32 [3, h, w], normalised.

    Args:
        data: the file's bytes; decoded as those of a data set are.
        framing: how large it becomes.
        name: for messages.

    Raises:
        DataError: it is no whole image file.
    """
    try:
        stored = normalise(data)
    except Unstorable as error:
        raise DataError(f"{name}: {error.found}", "a whole image file") from error
    size = stored.height, stored.width
    height, width = framing.frames(np.array([size]))[0].tolist()
    encoded = EncodedImage(np.frombuffer(stored.jpeg, np.uint8), *size, height, width)
    pixels = CPUDecoder().decode([encoded])[0]
    if isinstance(pixels, BadImage):
        raise DataError(f"{name} cannot be decoded: {pixels.reason}", "a whole image file")
    out = torch.empty(3, height, width)
    place_image(pixels, whole(*size, (height, width), filter=framing.filter), size, out)
    return out


def together(pictures: Sequence[Tensor], framing: Framing) -> tuple[Tensor, Tensor | None]:
    """Returns pictures [3, h, w] as images float32 [I, 3, H, W] and mask bool [I, H, W] or None."""
    frames = [(picture.shape[1], picture.shape[2]) for picture in pictures]
    canvas = framing.canvas(np.array(frames))
    images = torch.zeros(len(pictures), 3, *canvas)
    for image, picture, (height, width) in zip(images, pictures, frames, strict=True):
        image[:, :height, :width] = picture
    return images, framing.mask(frames, canvas)
