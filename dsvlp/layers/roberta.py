"""transformers' RoBERTa layer taken apart: with a cross-attention inside, and without its last norm.

Legend: B texts, L tokens, D width, N image tokens, C their width.
"""

from __future__ import annotations

from torch import Tensor
from transformers.models.roberta.modeling_roberta import RobertaLayer

from dsvlp.layers.gated import GatedCrossAttention


def text_layer(
    layer: RobertaLayer,
    tokens: Tensor,
    keys: Tensor,
    cross: GatedCrossAttention | None = None,
    image: Tensor | None = None,
    output_norm: bool = True,
) -> Tensor:
    """Returns the tokens [B, L, D] after a layer; its self-attention's output reads the image (FIBER, 1.4).

    Args:
        tokens: [B, L, D].
        keys: bool [B, 1, 1 or L, L], True where a token may look.
        cross: the cross-attention to `image`, or None.
        image: [B, N, C], as it is before the image block of this pair.
        output_norm: False: without the LayerNorm after the feed-forward half.
    """
    attended, output = attend(layer, tokens, keys), layer.output
    if cross is not None:
        assert image is not None
        attended = cross(attended, image)
    hidden = layer.attention.output.LayerNorm(attended + tokens)
    out: Tensor = output.dropout(output.dense(layer.intermediate(hidden))) + hidden
    return output.LayerNorm(out) if output_norm else out


def attend(layer: RobertaLayer, tokens: Tensor, keys: Tensor) -> Tensor:
    """Returns a layer's self-attention before its residual, [B, L, D]: the query of its cross-attention."""
    mixed, _ = layer.attention.self(tokens, keys)
    out: Tensor = layer.attention.output.dropout(layer.attention.output.dense(mixed))
    return out
