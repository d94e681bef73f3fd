"""Gated cross-attention: how one stream reads the other inside a backbone block (FIBER, 1.2 and 1.4).

Legend: B pairs, N queries, M keys, C width of the reading stream, D width of the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsvlp.layers.attention import Attention


class GatedCrossAttention(Attention):
    """Adds to a self-attention's output what it finds in the other stream, times a learnt gate.

    The query is the self-attention's output before the residual. The gate starts at 0: a new fusion
    changes nothing, and at the first step only the gate gets a gradient.

    Args:
        width, heads: of the reading stream.
        context_width: of the stream that is read.
        dropout: of the probabilities and of the result.
        query_norm: LayerNorm on the query; the image's side of the coarse model and of fine v3 has it.
    """

    def __init__(
        self, width: int, heads: int, context_width: int, dropout: float, query_norm: bool = False
    ) -> None:
        super().__init__(width, heads, dropout, context_width)
        self.norm = nn.LayerNorm(width) if query_norm else nn.Identity()
        self.output = nn.Linear(width, width)
        self.output_dropout = nn.Dropout(dropout)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, states: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns states + gate * crossed, [B, N, C]; context [B, M, D], mask bool [B, M] or None."""
        mixed = super().forward(self.norm(states), context, mask)
        crossed = self.output_dropout(self.output(mixed))
        return states + self.gate.to(crossed.dtype) * crossed

    def probabilities(self, states: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the attention [B, H, N, M] that `forward` mixes by, without dropout: for pictures."""
        return super().probabilities(self.norm(states), context, mask)
