"""Answers to questions, among those of the data's answer table, beside the other losses (SemVLP, Losses 4).

Legend: P pairs, A answers, D width of the joint feature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dsvlp.errors import RecipeError
from dsvlp.layers.attention import NORM_EPS, initialise
from dsvlp.objectives.base import (
    Objective,
    Targets,
    class_constant,
    class_counts,
    classified,
    counted_pairs,
    mode_parts,
)
from dsvlp.passes import Passes
from dsvlp.recipe import QA as Table
from dsvlp.types import Batch, DataFacts, Loss

NO_ANSWER = -1


@dataclass(frozen=True)
class QATargets(Targets):
    """Answers int64 [P], -1 where there is none, and weights float32 [P], 0 where a pair does not count."""

    labels: Tensor
    weight: Tensor


class QA(Objective):
    """Classifies the joint feature of true pairs whose text is a question with a known answer.

    The head is LXMERT's. Captions, answers outside the table and mismatched pairs do not count.

    Args:
        table: the recipe's table.
        width: D.
        answers: A.
    """

    name = "qa"

    def __init__(self, table: Table, width: int, answers: int) -> None:
        super().__init__(table.view)
        self.answers = answers
        self.head = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.LayerNorm(2 * width, eps=NORM_EPS),
            nn.Linear(2 * width, answers),
        )
        initialise(self.head, width)

    @classmethod
    def from_recipe(cls, table: Table, model_table: Any, model: Any, facts: DataFacts) -> QA:
        """Returns the objective, as wide as the data's answer table.

        Raises:
            RecipeError: the data has no questions with answers.
        """
        if facts.answers is None:
            raise RecipeError(
                "objectives.qa, but the data has no answers", "a data set written with questions"
            )
        return cls(table, model.pooled_width, len(facts.answers.names))

    def prepare(self, view: Batch) -> tuple[Batch, QATargets]:
        """Returns the view as it is, and the answers."""
        labels = view.labels
        if labels is None:
            labels = torch.full_like(view.pairs[:, 0], NO_ANSWER)
        weight = (counted_pairs(view) & (labels != NO_ANSWER)).float()
        modes = mode_parts(view.mode, torch.arange(len(labels), device=labels.device))
        return view, QATargets(weight.sum(), labels, weight, modes=modes)

    def begin(self, passes: Passes, targets: QATargets) -> None:
        """Asks for the view's fused pass."""
        passes.ask(self.view)

    def loss(self, passes: Passes, targets: QATargets, begun: None = None) -> Loss:
        """Returns the cross-entropy summed over answered questions of true pairs."""
        pooled = passes.fused(self.view).pooled
        assert pooled is not None
        logits = self.head(pooled).float()  # [P, A]
        return classified(logits, targets.labels, targets.weight, targets.count, modes=targets.modes)

    def constant(self, targets: QATargets) -> Tensor:
        """Returns how often each answer is the target, float64 [A]."""
        return class_counts(targets.labels, targets.weight, self.answers)

    def constant_loss(self, statistics: Tensor) -> dict[str, float]:
        """Returns loss and accuracy of always predicting the answers' shares."""
        return class_constant(statistics)
