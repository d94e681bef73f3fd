"""A fusion step: an image block and a text layer that read each other (FIBER, 1.2 and 1.4).

Legend: B pairs, h x w grid, C its width, L text tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from dsvlp.layers.gated import GatedCrossAttention
from dsvlp.layers.roberta import RobertaLayer, text_layer
from dsvlp.layers.swin import SwinTransformerBlock, fused_block


class FusedPair(nn.Module):
    """The two cross-attentions of a pair; the block and the layer themselves belong to the towers.

    Args:
        image: reads the text inside the image block.
        text: reads the image inside the text layer.
    """

    def __init__(self, image: GatedCrossAttention, text: GatedCrossAttention) -> None:
        super().__init__()
        self.image = image
        self.text = text

    def forward(
        self,
        block: SwinTransformerBlock,
        layer: RobertaLayer,
        grid: Tensor,
        tokens: Tensor,
        text_mask: Tensor,
        output_norm: bool,
    ) -> tuple[Tensor, Tensor]:
        """Returns the grid [B, h, w, C] and the tokens [B, L, D], each after reading the other's input.

        Args:
            block, layer: the pair's own, from the towers.
            grid, tokens: what they start from.
            text_mask: bool [B, L].
            output_norm: whether the text layer ends with its LayerNorm.
        """
        read = fused_block(block, self.image, grid, tokens, text_mask)
        keys = text_mask[:, None, None]
        return read, text_layer(layer, tokens, keys, self.text, grid.flatten(1, 2), output_norm)
