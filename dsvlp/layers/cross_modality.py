"""The cross-modality layer of LXMERT (Tan and Bansal, 2019), on which SVL's two streams meet (SVL, S6).

Legend: B batch, L text tokens, N image tokens, D width, H heads.
"""

from __future__ import annotations

from torch import Tensor, nn

from dsvlp.layers.attention import AttentionBlock, FeedForward


class CrossModalityLayer(nn.Module):
    """Cross-attention in both directions, then self-attention and feed-forward in each stream.

    Both directions read the other stream's states as the previous layer left them (S6b).

    Args:
        width, heads, feed_forward, dropout: sizes of both streams.
        share: one set of cross-attention weights for both directions, as LXMERT; else one each (S6a).
    """

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float, share: bool) -> None:
        super().__init__()
        directions = 1 if share else 2
        self.cross = nn.ModuleList(AttentionBlock(width, heads, dropout) for _ in range(directions))
        self.text_self = AttentionBlock(width, heads, dropout)
        self.image_self = AttentionBlock(width, heads, dropout)
        self.text_feed_forward = FeedForward(width, feed_forward, dropout)
        self.image_feed_forward = FeedForward(width, feed_forward, dropout)

    def forward(
        self, text: Tensor, image: Tensor, text_mask: Tensor | None, image_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the new text states [B, L, D] and image states [B, N, D]; masks None: all count."""
        crossed_text = self.cross[0](text, image, image_mask)
        crossed_image = self.cross[-1](image, text, text_mask)
        text = self.text_self(crossed_text, crossed_text, text_mask)
        image = self.image_self(crossed_image, crossed_image, image_mask)
        return self.text_feed_forward(text), self.image_feed_forward(image)

    def words_over_cells(self, text: Tensor, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """Returns how the words' cross-attention looks at the image: [B, H, L, N], rows sum to 1."""
        block = self.cross[0]
        assert isinstance(block, AttentionBlock)
        return block.attention.probabilities(text, image, image_mask)
