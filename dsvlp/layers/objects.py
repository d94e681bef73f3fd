"""Objects as tokens: [IMG] first, then each region's feature and box, as wide as words (SemVLP, M4, M5).

Legend: I images, N objects, F feature width, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsvlp.layers.attention import NORM_EPS, initial_deviation, initialise

BOX = 4  # left, top, right, bottom


class ObjectEmbedding(nn.Module):
    """Projected objects behind the learned [IMG], a segment's embedding added, LayerNorm, dropout.

    [IMG] is put in front in here, not by the caller: ZeRO-3 holds it only between this module's hooks.

    Args:
        features: F.
        width: D.
        dropout: of the tokens.
        average: feature and box are projected apart, as LXMERT; else together (M4a).
        normed: features lose their mean and size first, without parameters. What a CNN's last ReLU lets
            through is never negative and much alike in all objects: a step that all weights take in one
            direction moves every token by as much as objects differ.
    """

    def __init__(self, features: int, width: int, dropout: float, average: bool, normed: bool) -> None:
        super().__init__()
        self._normed = normed
        self.project = AveragedProjection(features, width) if average else nn.Linear(features + BOX, width)
        self.image = nn.Parameter(torch.empty(width).normal_(std=initial_deviation(width)))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        initialise(self.project, width)

    def forward(self, objects: Tensor, segment: Tensor) -> Tensor:
        """Returns tokens [I, 1 + N, D] of objects [I, N, F + 4] in any precision, and a segment [1, D]."""
        objects = objects.float()
        if self._normed:
            features, boxes = objects[..., :-BOX], objects[..., -BOX:]
            objects = torch.cat((F.layer_norm(features, features.shape[-1:]), boxes), -1)
        projected = self.project(objects)
        tokens = torch.cat((self.image.expand(len(objects), 1, -1), projected), 1)
        out: Tensor = self.dropout(self.norm(tokens + segment))
        return out


class AveragedProjection(nn.Module):
    """The mean of feature and box, each through a Linear and a LayerNorm of its own (LXMERT)."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.feature, self.box = nn.Linear(features, width), nn.Linear(BOX, width)
        self.feature_norm, self.box_norm = (nn.LayerNorm(width, eps=NORM_EPS) for _ in range(2))

    def forward(self, objects: Tensor) -> Tensor:
        """Returns [I, N, D] of [I, N, F + 4]."""
        features, boxes = objects[..., :-BOX], objects[..., -BOX:]
        return (self.feature_norm(self.feature(features)) + self.box_norm(self.box(boxes))) / 2
