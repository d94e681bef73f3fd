"""What a CNN's map says inside a box: RoIAlign's mean, without a compiled operator.

RoIAlign reads the map bilinearly at the points of a regular grid inside the box; a region's feature is the
mean over them. Grid and interpolation are both products of one direction with the other, so that mean is a
weighted mean of cells whose weights are a row's times a column's: one matrix product of [K, h w] with
[h w, C] in place of 4 K P^2 reads of C channels.

Legend: I images, K boxes, C channels, h x w cells, P points.
"""

from __future__ import annotations

import torch
from torch import Tensor

POINTS = 14
"""Points in each direction: 7 x 7 bins of 2 x 2 points (Mask R-CNN, 3)."""


def pooled(maps: Tensor, boxes: Tensor, points: int = POINTS) -> Tensor:
    """Returns the mean of a map inside boxes, float32 [I, K, C].

    Args:
        maps: [I, C, h, w].
        boxes: float32 [I, K, 4], left, top, right, bottom as shares of the picture that the map covers.
        points: P.
    """
    height, width = maps.shape[2:]
    across = cell_weights(boxes[..., 0], boxes[..., 2], width, points)
    down = cell_weights(boxes[..., 1], boxes[..., 3], height, points)
    weights = down[..., :, None] * across[..., None, :]  # [I, K, h, w]
    return weights.flatten(2) @ maps.float().flatten(2).transpose(1, 2)


def cell_weights(begin: Tensor, end: Tensor, cells: int, points: int) -> Tensor:
    """Returns what each cell of one direction weighs in the mean over the points, [..., cells]; in all 1.

    Args:
        begin, end: shares of the picture [...].
        cells: of the map in this direction; beyond the centres of the outer ones, their values hold.
        points: P, in the middles of P equal parts.
    """
    steps = (torch.arange(points, device=begin.device) + 0.5) / points
    shares = begin[..., None] + (end - begin)[..., None] * steps  # [..., P]
    places = (shares * cells - 0.5).clamp(0, cells - 1)  # a cell's centre is its number
    numbers = torch.arange(cells, device=begin.device)
    return (1 - (places[..., None] - numbers).abs()).clamp(min=0).mean(-2)
