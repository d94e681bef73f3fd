"""Pictures of attention: the image with a word's map laid over it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from dsvlp.data.jpeg import normalise
from dsvlp.predict.model import ImageFile, WordAttention, read_bytes

OPACITY = 0.6  # of the strongest cell; a cell without attention leaves the picture as it is


def overlay(image: Image.Image, weights: np.ndarray) -> Image.Image:
    """Returns the image with a map over it, as large as the image.

    Args:
        image: the picture.
        weights: [h, w], not negative; drawn relative to their largest.
    """
    relative = (weights / max(float(weights.max()), 1e-12)).astype(np.float32)
    heat = np.asarray(Image.fromarray(relative).resize(image.size, Image.Resampling.BICUBIC)).clip(0, 1)
    colours = matplotlib.colormaps["inferno"](heat)[..., :3]
    share = OPACITY * heat[..., None]
    mixed = (1 - share) * np.asarray(image.convert("RGB")) + share * 255 * colours
    return Image.fromarray(mixed.round().astype(np.uint8))


def write(image: ImageFile, words: list[WordAttention], folder: Path) -> list[Path]:
    """Writes one PNG a word into `folder` and returns their paths, in the order of the text."""
    picture = Image.open(io.BytesIO(normalise(read_bytes(image)).jpeg))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, word in enumerate(words):
        name = re.sub(r"[^\w-]+", "_", word.word)[:40]
        paths.append(folder / f"{number:02d}-{name}.png")
        overlay(picture, word.map).save(paths[-1])
    return paths
