"""The heads of the tasks that answer from the joint feature: questions (VQA) and statements (NLVR2).

Legend: B pairs, S statements, F width of the joint feature, A answers.
"""

from __future__ import annotations

from torch import Tensor, nn

from dsvlp.layers.attention import initialise
from dsvlp.types import Encoded


class AnswerHead(nn.Sequential):
    """Linear, LayerNorm, GELU, Linear: logits of answers (FIBER, 1.5).

    Args:
        width: of what comes in.
        hidden: of the layer between, FIBER: F for both tasks.
        answers: A, VQAv2's official 3129, or two.
        model_width: width of the model, for the initial weights.
    """

    def __init__(self, width: int, hidden: int, answers: int, model_width: int) -> None:
        super().__init__(
            nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, answers)
        )
        initialise(self, model_width)


class VQAHead(AnswerHead):
    """An answer to a question about an image: F to F to A."""

    def __init__(self, pooled_width: int, answers: int, model_width: int) -> None:
        super().__init__(pooled_width, pooled_width, answers, model_width)

    def score(self, encoded: Encoded) -> Tensor:
        """Returns logits [B, A] of fused pairs of an image and a question."""
        assert encoded.pooled is not None
        logits: Tensor = self(encoded.pooled).float()
        return logits


class NLVR2Head(AnswerHead):
    """Whether a statement holds of two images: two fused passes with the same text, 2 F to F to 2."""

    def __init__(self, pooled_width: int, model_width: int) -> None:
        super().__init__(2 * pooled_width, pooled_width, 2, model_width)

    def score(self, encoded: Encoded) -> Tensor:
        """Returns logits [S, 2] (index 1: it holds) of 2 S fused pairs.

        Rows 2 s and 2 s + 1 are statement s with its left and its right image, as `Batch.pairs` has them.
        """
        assert encoded.pooled is not None
        logits: Tensor = self(encoded.pooled.unflatten(0, (-1, 2)).flatten(1)).float()
        return logits
