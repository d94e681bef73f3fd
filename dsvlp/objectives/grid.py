"""What the losses on the visual grid share: its states before or after fusion, and its rows' weights.

Legend: I images, P pairs, R rows (I before fusion, P after), D width, h x w grid.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from dsvlp.passes import Passes
from dsvlp.types import Batch

At = Literal["pre", "post"]


def fused_grid(passes: Passes, view: str) -> Tensor:
    """Returns the fused image stream as a map, one row a pair: [P, D, h, w]."""
    tokens = passes.fused(view).image
    assert tokens is not None
    return tokens.tokens.transpose(1, 2).unflatten(2, passes.image(view).maps[-1].shape[-2:])


def row_weight(batch: Batch, at: At) -> Tensor:
    """Returns float32 [R]: a pair's own weight, or for an image the largest of its pairs' weights."""
    if at == "post":
        return batch.weight
    none = batch.weight.new_zeros(len(batch.images))
    return none.scatter_reduce(0, batch.pairs[:, 0], batch.weight, "amax")


def rows(per_image: Tensor, batch: Batch, at: At) -> Tensor:
    """Returns an image-side target [I, ...] by row [R, ...]."""
    return per_image if at == "pre" else per_image[batch.pairs[:, 0]]
