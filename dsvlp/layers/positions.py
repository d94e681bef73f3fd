"""Positions of a grid of cells: learned (of the whole grid, or of lines and columns), sines, or none.

Legend: h x w grid, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsvlp.layers.attention import initial_deviation


class GridPositions(nn.Module):
    """Adds a learned table of the positions of a square grid.

    The sum is made in here, not by the caller: ZeRO-3 holds the table only between this module's
    hooks, which look at its input and output.
    """

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Parameter(torch.empty(1, side * side, width).normal_(std=initial_deviation(width)))

    def forward(self, grid: Tensor) -> Tensor:
        """Returns tokens [B, h * w, D] of a grid [B, D, h, w]; of another size, by interpolation (S8)."""
        positions = resample(self.table, (self.side, self.side), (grid.shape[2], grid.shape[3]))
        return grid.flatten(2).transpose(1, 2) + positions


def resample(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Returns a position table [1, h * w, D] of grid `old` for grid `new`, bicubic in float32."""
    if old == new:
        return table
    grid = table.float().unflatten(1, old).permute(0, 3, 1, 2)  # [1, D, h, w]
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True, align_corners=False)
    return grid.flatten(2).transpose(1, 2).to(table.dtype)  # [1, h' * w', D]


class NoPositions(nn.Module):
    """A grid's cells as a set: nothing is added."""

    def forward(self, grid: Tensor) -> Tensor:
        """Returns tokens [B, h * w, D] of a grid [B, D, h, w]."""
        return grid.flatten(2).transpose(1, 2)


class LinesAndColumns(nn.Module):
    """Adds a learned vector of a cell's line and one of its column (as ClipBERT): the same on any canvas."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.lines = nn.Parameter(torch.empty(side, width).normal_(std=initial_deviation(width)))
        self.columns = nn.Parameter(torch.empty(side, width).normal_(std=initial_deviation(width)))

    def forward(self, grid: Tensor) -> Tensor:
        """Returns tokens [B, h * w, D] of a grid [B, D, h, w] of at most `side` lines and columns."""
        positions = self.lines[: grid.shape[2], None] + self.columns[: grid.shape[3]]  # [h, w, D]
        return grid.flatten(2).transpose(1, 2) + positions.flatten(0, 1)


class SinePositions(nn.Module):
    """Adds sines and cosines of a cell's line (half of the width) and column (the rest), as DETR's."""

    def forward(self, grid: Tensor) -> Tensor:
        """Returns tokens [B, h * w, D] of a grid [B, D, h, w]; four divides D."""
        half = grid.shape[1] // 2
        lines, columns = (_waves(side, half, grid) for side in grid.shape[2:])
        positions = torch.cat(torch.broadcast_tensors(lines[:, None], columns[None]), -1)  # [h, w, D]
        return grid.flatten(2).transpose(1, 2) + positions.flatten(0, 1)


def _waves(count: int, width: int, like: Tensor) -> Tensor:
    """Returns sines, then cosines, of 0 .. count-1 at falling frequencies: [count, width]."""
    place = torch.arange(count, device=like.device, dtype=torch.float32)
    frequency = 10000.0 ** (-torch.arange(width // 2, device=like.device) / (width // 2))
    angle = place[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), 1).to(like.dtype)


def grid_positions(kind: Literal["none", "sine", "learned"], side: int, width: int) -> nn.Module:
    """Returns what turns a grid into tokens that know their places, or do not.

    Args:
        kind: what is added.
        side: lines and columns of the largest grid.
        width: D.
    """
    if kind == "learned":
        return LinesAndColumns(side, width)
    return SinePositions() if kind == "sine" else NoPositions()
