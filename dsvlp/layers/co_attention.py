"""The co-attention layer of METER (Dou et al., 2022): each stream attends to itself, then to the other.

Legend: B pairs, L text tokens, N image tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from dsvlp.layers.attention import AttentionBlock, FeedForward


class CoAttentionStream(nn.Module):
    """One stream's half: self-attention, cross-attention, feed-forward, each with its norm behind it.

    Args:
        width, heads, feed_forward, dropout: sizes of both streams.
    """

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attention = AttentionBlock(width, heads, dropout)
        self.cross = AttentionBlock(width, heads, dropout)
        self.feed_forward = FeedForward(width, feed_forward, dropout)

    def forward(self, own: Tensor, other: Tensor, own_mask: Tensor, other_mask: Tensor) -> Tensor:
        """Returns the stream's new states, of both streams' states and bool masks."""
        states = self.attention(own, own, own_mask)
        out: Tensor = self.feed_forward(self.cross(states, other, other_mask))
        return out

    def look(self, own: Tensor, other: Tensor, own_mask: Tensor, other_mask: Tensor) -> Tensor:
        """Returns how this stream looks at the other, [B, H, own tokens, other tokens]; rows sum to 1."""
        states = self.attention(own, own, own_mask)
        return self.cross.attention.probabilities(states, other, other_mask)


class CoAttentionLayer(nn.Module):
    """Both streams at once: each reads the other as the previous layer left it."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.text = CoAttentionStream(width, heads, feed_forward, dropout)
        self.image = CoAttentionStream(width, heads, feed_forward, dropout)

    def forward(
        self, text: Tensor, image: Tensor, text_mask: Tensor, image_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the new text states [B, L, D] and image states [B, N, D]."""
        return self.text(text, image, text_mask, image_mask), self.image(image, text, image_mask, text_mask)
