"""transformers' BERT layer taken apart: with a cross-attention between its two halves (SemVLP, M7).

Legend: B rows, N tokens, M tokens of the sequence that is read, D width.
"""

from __future__ import annotations

from torch import Tensor
from transformers.models.bert.modeling_bert import BertAttention, BertLayer

from dsvlp.layers.attention import AttentionBlock


class CrossedLayer(AttentionBlock):
    """Cross-attention, with residual and norm of its own, that is run together with a BERT layer's halves."""

    def forward(  # type: ignore[override]
        self, layer: BertLayer, tokens: Tensor, keys: Tensor, context: Tensor, mask: Tensor
    ) -> Tensor:
        """Returns the tokens [B, N, D] after self-attention, cross-attention and feed-forward.

        Args:
            layer: gives the self-attention and the feed-forward; it stays the model's.
            tokens: [B, N, D].
            keys: bool [B, 1, 1, N], True at tokens that count.
            context: [B, M, D], what is read.
            mask: bool [B, M], True at what of it counts.
        """
        attended, _ = layer.attention(tokens, keys)
        crossed = super().forward(attended, context, mask)
        out: Tensor = layer.output(layer.intermediate(crossed), crossed)
        return out


def copy_attention(source: BertAttention, into: AttentionBlock) -> None:
    """Gives a block of ours the weights of a BERT layer's self-attention, norm included."""
    own, attention = into.attention, source.self
    for part, like in (
        (own.query, attention.query),
        (own.key, attention.key),
        (own.value, attention.value),
        (into.output, source.output.dense),
        (into.norm, source.output.LayerNorm),
    ):
        part.load_state_dict(like.state_dict())
