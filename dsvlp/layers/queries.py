"""One transformer decoder layer whose learned queries read the visual grid (SVL, SPL).

Legend: B batch, Q queries, D width, h x w grid. The queries' outputs replace the grid as the image's
tokens, at inference too, hence it is a part of the model and not of the objective.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsvlp.layers.attention import AttentionBlock, FeedForward, initial_deviation
from dsvlp.layers.positions import GridPositions


class QueryDecoder(nn.Module):
    """Learned queries, self-attention, cross-attention to the grid, feed-forward.

    Keys and values are the grid's states plus learned positions. DETR starts from zero targets and
    adds query positions in each of six layers; with a single layer the learned target is the same
    and simpler.

    Args:
        queries: number of queries, and of image tokens that come out.
        side: cells on a side of the grid.
        width, heads, feed_forward, dropout: as in the cross-modality layers.
    """

    def __init__(
        self, queries: int, side: int, width: int, heads: int, feed_forward: int, dropout: float
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(1, queries, width).normal_(std=initial_deviation(width)))
        self.positions = GridPositions(side, width)
        self.self_attention = AttentionBlock(width, heads, dropout)
        self.cross_attention = AttentionBlock(width, heads, dropout)
        self.feed_forward = FeedForward(width, feed_forward, dropout)

    def forward(self, grid: Tensor) -> Tensor:
        """Returns query states [B, Q, D] of a grid [B, D, h, w]."""
        cells = self.positions(grid)  # [B, h * w, D]
        states = self.queries.expand(len(grid), -1, -1)
        states = self.self_attention(states, states)
        return self.feed_forward(self.cross_attention(states, cells))
