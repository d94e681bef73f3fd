"""Image-text matching: does this text belong to this image? (SVL, L_ITM; FIBER, 2)

Two ways to the mismatched pairs. **loader**: half of the pairs get the text of another image, which the
loader brought. **Hard negatives** (FIBER): each pair brings two more, drawn by ITC's similarity, of the
batch or also of past pairs that are fetched for it: in the step before (`dsvlp.objectives.pool`), or
within the step (`dsvlp.objectives.at_once`).

Legend: P pairs, B judged pairs (P, or 3P with hard negatives), T texts, D width.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dsvlp.layers.attention import initialise
from dsvlp.objectives import at_once, hard_negatives
from dsvlp.objectives.base import (
    Objective,
    Targets,
    class_constant,
    class_counts,
    classified,
    mode_parts,
)
from dsvlp.objectives.hard_negatives import Candidates, Drawn
from dsvlp.objectives.pool import Pool
from dsvlp.passes import Passes
from dsvlp.recipe import ITM as Table
from dsvlp.recipe import BatchSize
from dsvlp.types import Batch, Encoded, Loss


@dataclass(frozen=True)
class ITMTargets(Targets):
    """What is judged: the view's own pairs, then with hard negatives each image with another text, then
    each text with another image.

    Attributes:
        labels: int64 [B], 1 where the pair is a true one.
        weight: float32 [B].
        candidates: what the hard negatives are drawn from; None where the loader brought the texts.
    """

    labels: Tensor
    weight: Tensor
    candidates: Candidates | None = None


class ITM(Objective):
    """Classifies the pooled feature of matched and mismatched pairs. There is one head, for all.

    Args:
        table: the recipe's table.
        width: of the pooled feature.
        contrast_width: of ITC's vectors.

    Attributes:
        pool: the past pairs that the next step draws from; None where negatives come from elsewhere, or
            without delay.
    """

    name = "itm"

    def __init__(self, table: Table, width: int, contrast_width: int = 0) -> None:
        super().__init__(table.view)
        self.negatives, self.delay = table.negatives, table.negatives_delay
        self.same_image = table.same_image == "negative"
        self.pool: Pool | None = None
        if self.delay == 0:
            self.seconds = {"fetching": 0.0}
        self._contrast_width = contrast_width
        self.head = nn.Linear(width, 2)
        initialise(self.head, width)

    @classmethod
    def from_recipe(cls, table: Table, model_table: Any, model: Any, facts: Any) -> "ITM":
        """Returns the objective for a model of `model.pooled_width`."""
        return cls(table, model.pooled_width, model.width)

    def told(self, batch: BatchSize) -> None:
        """Makes a place of the pool for each pair of the global batch."""
        super().told(batch)
        if self.negatives == "queue" and self.delay:
            self.pool = Pool(batch.global_pairs, self._contrast_width)

    def prepare(self, view: Batch) -> tuple[Batch, ITMTargets]:
        """Returns the view and what is judged in it. With gathered negatives every rank must call.

        From the loader: one text a pair, the partner's where the pair is unmatched; the text is swapped
        and not the image, so that the image-side losses stay valid. Else the view as it is. Without delay
        the queue's pairs are drawn too late to be counted: a pair whose batch shows no other image is
        judged alone.
        """
        if self.negatives == "loader":
            modes = mode_parts(view.mode, torch.arange(len(view.weight), device=view.weight.device))
            return swapped(view), ITMTargets(view.weight.sum(), view.matched.long(), view.weight, modes=modes)
        found = hard_negatives.candidates(view, self.negatives, self.same_image)
        true = torch.ones_like(view.pairs[:, 0])
        some = (side.allowed.any(1) for side in (found.texts, found.images))
        weight = torch.cat((view.weight, *(view.weight * has for has in some)))
        return view, ITMTargets(weight.sum(), torch.cat((true, 0 * true, 0 * true)), weight, found)

    def logits(self, encoded: Encoded) -> Tensor:
        """Returns float32 logits [B, 2] of (mismatched, matched)."""
        assert encoded.pooled is not None
        return self.head(encoded.pooled).float()

    def score(self, encoded: Encoded) -> Tensor:
        """Returns the match logit [B]: how much likelier matched is than mismatched."""
        logits = self.logits(encoded)
        return logits[:, 1] - logits[:, 0]

    def begin(self, passes: Passes, targets: ITMTargets) -> Drawn | None:
        """Asks for the fused passes of all pairs; returns the hard negatives, where there are any."""
        passes.ask(self.view)
        if targets.candidates is None or self.negatives == "loader":
            return None
        assert passes.similarity is not None, "ITC begins before ITM"
        past = passes.similarity.past
        if past is not None and self.delay == 0:
            began = time.perf_counter()
            drawn = at_once.ask(passes, self.view, targets.candidates)
            self.seconds["fetching"] += time.perf_counter() - began
            return drawn
        drawn = hard_negatives.ask(passes, self.view, self.negatives, targets.candidates, self.pool)
        if self.pool is not None and past is not None and torch.is_grad_enabled():
            hard_negatives.draw_for_next(past, targets.candidates, self.pool)
        return drawn

    def loss(self, passes: Passes, targets: ITMTargets, begun: Drawn | None = None) -> Loss:
        """Returns the cross-entropy summed over judged pairs, the accuracy, and how the negatives are."""
        encoded = passes.fused(self.view)
        if begun is None:
            return classified(
                self.logits(encoded), targets.labels, targets.weight, targets.count, modes=targets.modes
            )
        drawn = begun.fused.result()
        assert encoded.pooled is not None and drawn.pooled is not None
        logits = self.logits(Encoded(pooled=torch.cat((encoded.pooled, drawn.pooled))))
        own, weight = targets.weight.split((len(encoded.pooled), len(begun.there)))
        weight = weight * begun.there
        loss = classified(logits, targets.labels, torch.cat((own, weight)), targets.count)
        how = {
            "hardness": ((begun.hardness * weight).sum(), weight.sum()),
            "false_negatives": ((begun.false * weight).sum(), weight.sum()),
        }
        if self.negatives == "queue":
            how["from_queue"] = ((begun.fetched * weight).sum(), weight.sum())
        return replace(loss, metrics=loss.metrics | how, drawn=begun.pairs)

    def after_step(self, finite: Tensor) -> None:
        """Moves the pool, also after a step that was not finite. Every rank must call."""
        if self.pool is not None:
            self.pool.settle()

    def constant(self, targets: ITMTargets) -> Tensor:
        """Returns how often each class is the target, float64 [2]."""
        return class_counts(targets.labels, targets.weight, 2)

    def constant_loss(self, statistics: Tensor) -> dict[str, float]:
        """Returns loss and accuracy of always predicting the shares of the two classes."""
        return class_constant(statistics)


def swapped(view: Batch) -> Batch:
    """Returns a view with one text a pair: the partner's where the pair is unmatched."""
    rows = torch.where(view.matched, view.pairs[:, 1], view.partner)
    own = torch.arange(len(rows), device=rows.device)
    return replace(
        view,
        text_ids=view.text_ids[rows],
        text_mask=view.text_mask[rows],
        special_mask=view.special_mask[rows],
        pairs=torch.stack((view.pairs[:, 0], own), 1),
        partner=own,
        mismatched=~view.matched,
    )
