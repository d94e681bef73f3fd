"""Crops, resizes, mirrors and normalises decoded images of any sizes into one batch, on their device.

What `augment.place_image` and `place_map` do image by image on the CPU. Maps are equal to the last bit;
images differ by rounding alone, for the CPU's fast resize rounds to 8 bits after each direction.

Cost on a GPU: three launches an image, because every window has a size of its own (to float, resize, put in
its place), three more where the filter is bicubic, one more where it is mirrored, and about seven a batch
(normalise, padding; a map's whole path).

Legend: I images, H x W the canvas, h x w a decoded image, N pixels of all maps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dsvlp.data.augment import Crop, resize, scaled_window
from dsvlp.data.frames import Shape
from dsvlp.data.lane import Lane
from dsvlp.types import IMAGENET_DEVIATION, IMAGENET_MEAN


def place_images(
    pixels: Sequence[Tensor], crops: Sequence[Crop], sources: Sequence[Shape], canvas: Shape, lane: Lane
) -> Tensor:
    """Returns images float32 [I, 3, H, W] on the lane's device, normalised; 0 where there is padding.

    Args:
        pixels: uint8 [3, h, w] each, the source or the source decoded at a fraction of its size.
        crops: where each output takes its pixels, in pixels of the source.
        sources: (height, width) of the sources.
        canvas: H and W.
        lane: holds the pixels.
    """
    out = torch.zeros(len(crops), 3, *canvas, device=lane.device)
    for picture, crop, source, place in zip(pixels, crops, sources, out, strict=True):
        target = (crop.target_height, crop.target_width)
        lines, columns = scaled_window(crop, source, (picture.shape[1], picture.shape[2]))
        window = picture[None, :, lines, columns]  # [1, 3, h, w]
        window = resize(window.float(), target, crop.filter)
        place[:, crop.lines(), crop.columns()] = window[0].flip(2) if crop.flip else window[0]
    return _normalise(out, crops, lane)


def _normalise(images: Tensor, crops: Sequence[Crop], lane: Lane) -> Tensor:
    """Returns values of 0 to 255 normalised in place; what no crop fills becomes exactly 0."""
    scale = [1 / (255 * deviation) for deviation in IMAGENET_DEVIATION]
    shift = [-mean / deviation for mean, deviation in zip(IMAGENET_MEAN, IMAGENET_DEVIATION, strict=True)]
    factors = lane.send(np.array([scale, shift], np.float32))[:, :, None, None]  # [2, 3, 1, 1]
    images.mul_(factors[0]).add_(factors[1])
    if any((crop.target_height, crop.target_width) != images.shape[2:] for crop in crops):
        lines, columns = (np.zeros((len(crops), side), np.float32) for side in images.shape[2:])
        for number, crop in enumerate(crops):
            lines[number, crop.lines()] = columns[number, crop.columns()] = 1
        images.mul_(lane.send(lines)[:, None, :, None] * lane.send(columns)[:, None, None, :])
    return images


def place_maps(maps: Sequence[np.ndarray], crops: Sequence[Crop], canvas: Shape, lane: Lane) -> Tensor:
    """Returns maps under the output's pixel centres, int64 [I, H, W] on the device; -1 in the padding.

    Args:
        maps: int32 [h, w] each, classes of the sources; they travel in one piece.
        crops: where each output takes its pixels.
        canvas: H and W.
        lane: names the device.
    """
    begins = np.cumsum([0, *(classes.size for classes in maps[:-1])])
    lines, columns = (np.full((len(maps), side), -1) for side in canvas)
    for number, (classes, crop) in enumerate(zip(maps, crops, strict=True)):
        own_lines, own_columns = crop.nearest()
        lines[number, crop.lines()] = begins[number] + own_lines * classes.shape[1]
        columns[number, crop.columns()] = own_columns
    every = lane.send(np.concatenate([classes.ravel() for classes in maps]))  # [N]
    down, across = lane.send(lines)[:, :, None], lane.send(columns)[:, None, :]
    found = every[(down + across).clamp_(min=0)]  # [I, H, W]
    return torch.where((down >= 0) & (across >= 0), found, -1).long()
