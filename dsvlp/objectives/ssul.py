"""Mean colour of masked picture cells, from what is around them (SVL, SSUL).

A mask cell is a square of `cell` x `cell` *pixels* (the specification's other reading, a 32 x 32
grid of cells, does not align with the tower's tokens). It covers a whole number of the tower's
cells, whose states are averaged.

Legend: I images, R rows (I before fusion, P after), D width, h x w mask cells, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsvlp import seed
from dsvlp.errors import RecipeError
from dsvlp.layers.attention import initialise
from dsvlp.objectives.base import Objective, Targets
from dsvlp.objectives.grid import fused_grid, row_weight, rows
from dsvlp.passes import Passes
from dsvlp.recipe import SSUL as Table
from dsvlp.types import IMAGENET_DEVIATION, IMAGENET_MEAN, Batch, Loss

COLOURS = 3


@dataclass(frozen=True)
class SSULTargets(Targets):
    """Mean colours float32 [R, 3, h, w] and weights float32 [R, 1, h, w], 0 at unmasked cells."""

    colours: Tensor
    weight: Tensor


class SSUL(Objective):
    """Masks cells of the image with the mean colour and regresses their own mean colour, L2.

    Args:
        table: the recipe's table.
        width: D.
        ratio: cells of the tower's grid on a side of a mask cell.
    """

    name = "ssul"

    def __init__(self, table: Table, width: int, ratio: int) -> None:
        super().__init__(table.view)
        self.table = table
        self.ratio = ratio
        self.head = nn.Linear(width, COLOURS)
        initialise(self.head, width)

    @classmethod
    def from_recipe(cls, table: Table, model_table: Any, model: Any, facts: Any) -> "SSUL":
        """Returns the objective.

        Raises:
            RecipeError: the mask cell is not made of whole cells of the tower.
        """
        if table.cell % model.stride:
            raise RecipeError(
                f"objectives.ssul.cell {table.cell} is not a multiple of the tower's stride {model.stride}",
                f"{model.stride}, or a multiple of it that divides model.image_size",
            )
        return cls(table, model.width, table.cell // model.stride)

    def prepare(self, view: Batch) -> tuple[Batch, SSULTargets]:
        """Returns the view with masked cells filled with 0, the mean colour, and the true colours."""
        cell = self.table.cell
        height, width = (size // cell for size in view.images.shape[-2:])
        draws = seed.uniform(view.image_keys, "ssul.select", height * width)
        masked = (draws < self.table.probability).unflatten(1, (1, height, width))  # [I, 1, h, w]
        pixels = masked.repeat_interleave(cell, 2).repeat_interleave(cell, 3)
        colours = F.avg_pool2d(self._scaled(view.images), cell)
        at = self.table.at
        weight = rows(masked, view, at) * row_weight(view, at)[:, None, None, None]
        targets = SSULTargets(weight.sum() * COLOURS, rows(colours, view, at), weight)
        return replace(view, images=view.images.masked_fill(pixels, 0.0)), targets

    def _scaled(self, images: Tensor) -> Tensor:
        if self.table.target == "normalised":
            return images
        mean, deviation = (
            torch.tensor(values, device=images.device).view(COLOURS, 1, 1)
            for values in (IMAGENET_MEAN, IMAGENET_DEVIATION)
        )
        return images * deviation + mean

    def predict(self, passes: Passes) -> Tensor:
        """Returns the predicted colours of all mask cells, float32 [R, 3, h, w]."""
        if self.table.at == "pre":
            grid = passes.image(self.view).maps[-1]
        else:
            grid = fused_grid(passes, self.view)
        states = F.avg_pool2d(grid, self.ratio).movedim(1, -1)  # [R, h, w, D]
        return self.head(states).float().movedim(-1, 1)

    def loss(self, passes: Passes, targets: SSULTargets, begun: None = None) -> Loss:
        """Returns the squared error summed over masked cells and colours; unmasked cells have no gradient."""
        predictions = self.predict(passes)
        error = (predictions - targets.colours) * targets.weight
        return Loss(
            (error * (predictions - targets.colours)).sum(),
            targets.count,
            {"absolute_error": (error.detach().abs().sum(), targets.count)},
            predictions.detach(),
        )

    def constant(self, targets: SSULTargets) -> Tensor:
        """Returns float64 [3, 3]: for each colour the number of cells, the sum and the sum of squares."""
        colours, weight = targets.colours.double(), targets.weight.double().expand_as(targets.colours)
        sums = [(weight * colours**power).sum((0, 2, 3)) for power in (0, 1, 2)]
        return torch.stack(sums, 1)

    def constant_loss(self, statistics: Tensor) -> dict[str, float]:
        """Returns the loss of always predicting the mean colour: the colours' variance."""
        count, total, squares = statistics.unbind(1)
        count = count.clamp(min=1)
        return {"loss": float((squares / count - (total / count) ** 2).mean())}
