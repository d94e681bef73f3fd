"""Segmentation of the visual grid: the class at each cell's centre (SVL, SEGL).

Legend: I images, R rows (I before fusion, P after), C classes, h x w cells, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsvlp.errors import RecipeError
from dsvlp.layers.attention import initialise
from dsvlp.objectives.base import Objective, Targets, class_constant, class_counts, classified
from dsvlp.objectives.grid import fused_grid, row_weight, rows
from dsvlp.passes import Passes
from dsvlp.recipe import SEGL as Table
from dsvlp.types import Batch, DataFacts, Loss

IGNORE = -1


@dataclass(frozen=True)
class SEGLTargets(Targets):
    """Labels int64 [R, h, w] and weights float32 [R, h, w], 0 where a cell does not count."""

    labels: Tensor
    weight: Tensor


class SEGL(Objective):
    """Classifies each cell of the visual grid by a 1x1 convolution.

    Args:
        table: the recipe's table.
        classes: labelled classes of the map's table.
        channels: channels of the map that is read.
        stride: pixels of a side of the label's cells.
    """

    name = "segl"

    def __init__(self, table: Table, classes: int, channels: int, stride: int) -> None:
        super().__init__(table.view)
        self.table = table
        self.stride = stride
        self.labelled = classes
        self.classes = classes + (table.unlabelled == "class")
        self.head = nn.Conv2d(channels, self.classes, 1)
        initialise(self.head, channels)

    @classmethod
    def from_recipe(cls, table: Table, model_table: Any, model: Any, facts: DataFacts) -> "SEGL":
        """Returns the objective, as wide as the data's label table.

        Raises:
            RecipeError: the data has no segmentation maps.
        """
        if facts.segmentation is None:
            raise RecipeError(
                "objectives.segl, but the data has no segmentation maps", "a data set written with maps"
            )
        channels = model.map_width if table.at == "pre" else model.width
        return cls(table, len(facts.segmentation.names), channels, model.segmentation_stride)

    def prepare(self, view: Batch) -> tuple[Batch, SEGLTargets]:
        """Returns the view as it is, and the classes at the cells' centres."""
        labels = rows(self._cells(view), view, self.table.at)
        weight = (labels != IGNORE) * row_weight(view, self.table.at)[:, None, None]
        return view, SEGLTargets(weight.sum(), labels, weight)

    def _cells(self, view: Batch) -> Tensor:
        """Returns int64 [I, h, w]: the pixel at (i + 0.5) * stride, never an average of ids."""
        if view.segmentation is None:
            count, _, height, width = view.images.shape
            shape = (count, height // self.stride, width // self.stride)
            return torch.full(shape, IGNORE, device=view.images.device)
        cells = centres(view.segmentation, self.stride)
        if self.table.unlabelled == "ignore":
            return cells
        # An image without any labelled pixel has no map; padding is never a class.
        unlabelled = (cells == IGNORE) & (view.segmentation != IGNORE).any((1, 2), keepdim=True)
        if view.image_mask is not None:
            unlabelled = unlabelled & centres(view.image_mask, self.stride)
        return torch.where(unlabelled, self.labelled, cells)

    def logits(self, passes: Passes) -> Tensor:
        """Returns float32 logits [R, C, h', w'] on the grid that the model has."""
        if self.table.at == "pre":
            return self.head(passes.image(self.view).maps[0]).float()
        return self.head(fused_grid(passes, self.view)).float()

    def loss(self, passes: Passes, targets: SEGLTargets, begun: None = None) -> Loss:
        """Returns the cross-entropy summed over labelled cells; coarser logits are enlarged (S4a)."""
        logits = self.logits(passes)
        if logits.shape[-2:] != targets.labels.shape[-2:]:
            logits = F.interpolate(logits, targets.labels.shape[-2:], mode="bilinear", align_corners=False)
        return classified(logits.movedim(1, -1), targets.labels, targets.weight, targets.count)

    def constant(self, targets: SEGLTargets) -> Tensor:
        """Returns how often each class is the target, float64 [C]."""
        return class_counts(targets.labels, targets.weight, self.classes)

    def constant_loss(self, statistics: Tensor) -> dict[str, float]:
        """Returns loss and accuracy of always predicting the classes' shares."""
        return class_constant(statistics)


def centres(pixels: Tensor, stride: int) -> Tensor:
    """Returns [I, H / stride, W / stride]: each cell's centre pixel, as `nearest-exact` would pick it."""
    return pixels[:, stride // 2 :: stride, stride // 2 :: stride]
