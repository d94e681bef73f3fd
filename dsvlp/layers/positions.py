"""Learned positions of a grid of cells, interpolated for grids of other sizes.

Legend: h x w grid, D width.
"""

from __future__ import annotations

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
