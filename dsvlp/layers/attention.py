"""Multi-head attention and feed-forward blocks as BERT and LXMERT have them: post-norm, GELU.

Legend: B batch, N queries, M keys, D width, H heads. Masks are True at keys that count.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-12  # BERT's and LXMERT's


class Attention(nn.Module):
    """Multi-head attention of one sequence over another, without its output projection.

    Args:
        width, heads: of the attending sequence, and of the result.
        dropout: of the attention's probabilities.
        context_width: of the sequence that is read; None: the same width.
    """

    def __init__(self, width: int, heads: int, dropout: float, context_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width or width, width)
        self.value = nn.Linear(context_width or width, width)

    def forward(self, states: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Returns [B, N, D] for states [B, N, D] over context [B, M, D']; mask bool [B, M] or None."""
        mixed = F.scaled_dot_product_attention(
            self._split(self.query(states)),
            self._split(self.key(context)),
            self._split(self.value(context)),
            attn_mask=None if mask is None else mask[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return mixed.transpose(1, 2).flatten(2)  # [B, N, D]

    def probabilities(self, states: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the attention [B, H, N, M] that `forward` mixes by, without dropout: for pictures."""
        query, key = self._split(self.query(states)), self._split(self.key(context))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
        return scores.softmax(-1)

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, N, D / H]


class AttentionBlock(nn.Module):
    """Attention, projection, dropout, residual, LayerNorm: self-attention or cross-attention."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, states: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the updated states [B, N, D]; `context` is `states` itself for self-attention."""
        mixed = self.output(self.attention(states, context, mask))
        return self.norm(states + self.dropout(mixed))


class FeedForward(nn.Module):
    """Linear, GELU, linear, dropout, residual, LayerNorm."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, states: Tensor) -> Tensor:
        """Returns the updated states [..., D]."""
        return self.norm(states + self.dropout(self.output(F.gelu(self.inner(states)))))


def initial_deviation(width: int) -> float:
    """Returns the deviation of new weights: BERT's 0.02 at its width of 768, the same gain at others.

    A layer of width D multiplies its input by about deviation sqrt(D). With 0.02 a tiny model's
    attention starts out flat.
    """
    return 0.02 * math.sqrt(768 / width)


def initialise(module: nn.Module, width: int) -> None:
    """Draws the weights of a new part as BERT's: normal, biases 0, norms the identity."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.normal_(part.weight, std=initial_deviation(width))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
