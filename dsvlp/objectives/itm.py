"""Image-text matching: does this text belong to this image? (SVL, L_ITM)

Legend: P pairs, T texts, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dsvlp.layers.attention import initialise
from dsvlp.objectives.base import Objective, Targets, class_constant, class_counts, classified
from dsvlp.passes import Passes
from dsvlp.types import Batch, Encoded, Loss


@dataclass(frozen=True)
class ITMTargets(Targets):
    """Labels [P] (1: the pair is a true one) and weights float32 [P]."""

    labels: Tensor
    weight: Tensor


class ITM(Objective):
    """Swaps the texts of the unmatched pairs and classifies the pooled feature of every pair.

    The text is swapped and not the image, so that the image-side losses stay valid. The partner
    comes from the loader, which draws it from the global batch and from another image.
    """

    name = "itm"

    def __init__(self, view: str, width: int) -> None:
        super().__init__(view)
        self.head = nn.Linear(width, 2)
        initialise(self.head, width)

    @classmethod
    def from_recipe(cls, table: Any, model_table: Any, model: Any, facts: Any) -> "ITM":
        """Returns the objective for a model of `model.width`."""
        return cls(table.view, model.pooled_width)

    def prepare(self, view: Batch) -> tuple[Batch, ITMTargets]:
        """Returns the view with one text a pair, the partner's where the pair is unmatched."""
        rows = torch.where(view.matched, view.pairs[:, 1], view.partner)
        own = torch.arange(len(rows), device=rows.device)
        swapped = replace(
            view,
            text_ids=view.text_ids[rows],
            text_mask=view.text_mask[rows],
            special_mask=view.special_mask[rows],
            pairs=torch.stack((view.pairs[:, 0], own), 1),
            partner=own,
            mismatched=~view.matched,
        )
        return swapped, ITMTargets(view.weight.sum(), view.matched.long(), view.weight)

    def logits(self, encoded: Encoded) -> Tensor:
        """Returns float32 logits [P, 2] of (mismatched, matched)."""
        assert encoded.pooled is not None
        return self.head(encoded.pooled).float()

    def score(self, encoded: Encoded) -> Tensor:
        """Returns the match logit [P]: how much likelier matched is than mismatched."""
        logits = self.logits(encoded)
        return logits[:, 1] - logits[:, 0]

    def loss(self, passes: Passes, targets: ITMTargets, begun: None = None) -> Loss:
        """Returns the cross-entropy summed over pairs, and the accuracy."""
        logits = self.logits(passes.fused(self.view))
        return classified(logits, targets.labels, targets.weight, targets.count)

    def constant(self, targets: ITMTargets) -> Tensor:
        """Returns how often each class is the target, float64 [2]."""
        return class_counts(targets.labels, targets.weight, 2)

    def constant_loss(self, statistics: Tensor) -> dict[str, float]:
        """Returns loss and accuracy of always predicting the shares of the two classes."""
        return class_constant(statistics)
