"""The rectangles that images become: one square for all, or each its own of the image's aspect (Pixel-BERT).

A *frame* is the rectangle of pixels that one image becomes. A *canvas* is that of a whole batch: frames lie
in its upper left corner, the rest is padding. It is chosen for the global batch, so that no image's pixels
depend on how that is cut into micro-batches, and all ranks compute equally much.

A canvas is whole strides of the CNN (32), not whole cells (64): the CNN rounds a side up and the 2x2 pool
behind it down, so 800 x 1066 pixels make 25 x 34, then 12 x 17 cells (specification P3), and a canvas of
800 x 1088 makes the same. One of 832 x 1088 would make a 13th line, of nothing but padding. In a canvas that
is larger than its frame, an image's own cells are those whose centre is picture: those that it has alone.

Legend: N images, h x w a frame, H x W the canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dsvlp.recipe import PixelBERTModel, Recipe, SemVLPModel, Towers
from dsvlp.types import Filter

Shape = tuple[int, int]
"""Height and width, pixels."""

STRIDE = 32  # of the CNNs that read images of any aspect
_CELL = 2 * STRIDE


@dataclass(frozen=True)
class Framing:
    """How large images become.

    Attributes:
        side: pixels of a square, or of the shorter side where `longest` is set.
        longest: the longer side's limit, pixels; None: squares.
        filter: what resizes them.
    """

    side: int
    longest: int | None = None
    filter: Filter = "bilinear"

    @classmethod
    def of(cls, recipe: Recipe) -> Framing:
        """Returns how a recipe's model sees images."""
        model = recipe.model
        assert not isinstance(model, SemVLPModel), "a model of pixels"
        longest = model.longest_side if isinstance(model, PixelBERTModel) else None
        return cls(model.image_size, longest, model.resize if isinstance(model, Towers) else "bilinear")

    def frames(self, sizes: np.ndarray) -> np.ndarray:
        """Returns int64 [N, 2], the frames of images of `sizes` int64 [N, 2], (height, width).

        The shorter side is `side` unless the longer would pass `longest`; then that is the limit. Sides are
        rounded down, and never so short that no cell is left (beyond 20:1).
        """
        if self.longest is None:
            return np.full_like(sizes, self.side)
        shorter, longer = sizes.min(1), sizes.max(1)
        limited = longer * self.side // shorter > self.longest
        short = np.where(limited, shorter * self.longest // longer, self.side)
        long = np.where(limited, self.longest, longer * self.side // shorter)
        short = np.maximum(short, min(_CELL, self.side))
        tall = sizes[:, 0] > sizes[:, 1]
        return np.stack([np.where(tall, long, short), np.where(tall, short, long)], 1)

    def canvas(self, frames: np.ndarray) -> Shape:
        """Returns the smallest canvas of whole strides that holds frames int64 [N, 2]; one cell at least."""
        if self.longest is None:
            return self.side, self.side
        height, width = (max(_CELL, -(-int(side) // STRIDE) * STRIDE) for side in frames.max(0))
        return height, width

    def inside(self, frame: Shape, canvas: Shape) -> Shape:
        """Returns a frame, made smaller in its aspect where it does not fit into the canvas."""
        (height, width), (most_height, most_width) = frame, canvas
        if height <= most_height and width <= most_width:
            return frame
        if height * most_width > width * most_height:
            return most_height, max(1, width * most_height // height)
        return max(1, height * most_width // width), most_width

    def mask(self, frames: Sequence[Shape], canvas: Shape) -> Tensor | None:
        """Returns where there is picture, bool [N, H, W]; None for squares, which have no padding."""
        if self.longest is None:
            return None
        heights, widths = torch.tensor(frames).unbind(1)
        lines = torch.arange(canvas[0]) < heights[:, None]
        columns = torch.arange(canvas[1]) < widths[:, None]
        return lines[:, :, None] & columns[:, None, :]
