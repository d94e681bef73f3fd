"""METER: FIBER's two towers with the fusion on top of them, FIBER's rival in its paper (FIBER, 5).

The six co-attention layers read the finished towers through a Linear each. METER's embeddings of the
two modalities are those Linears' biases.

Legend: I images, T texts, B pairs, L text tokens, N image tokens, D text width, C final image width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsvlp.layers.attention import initialise
from dsvlp.layers.co_attention import CoAttentionLayer
from dsvlp.layers.recompute import run_block
from dsvlp.models.towers import TwoTowers, whole
from dsvlp.recipe import METERModel
from dsvlp.types import Encoded, States


class METER(TwoTowers[METERModel]):
    """Two finished towers and co-attention layers on top of them."""

    def _fusion(self, table: METERModel) -> list[CoAttentionLayer]:
        sizes, width = table.fusion, table.text.width
        layers = [
            CoAttentionLayer(width, sizes.heads, sizes.feed_forward, sizes.dropout)
            for _ in range(sizes.layers)
        ]
        for layer in layers:
            initialise(layer, width)
        return layers

    def encode_image(
        self, images: Tensor, image_mask: Tensor | None = None, image_keys: Tensor | None = None
    ) -> States:
        """Returns the image tower's tokens [I, N, C], of images [I, 3, H, W] of the model's own size."""
        return whole(self.image(images))

    def encode_text(self, text_ids: Tensor, text_mask: Tensor) -> States:
        """Returns the text tower's tokens [T, L, D] of int64 ids and bool mask [T, L]."""
        return States(self.text(text_ids, text_mask), text_mask)

    def finish_image(self, image: States) -> States:
        """Returns the states as they are: the fusion stands on top of the whole tower."""
        return image

    def finish_text(self, text: States) -> States:
        """Returns the states as they are: the fusion stands on top of the whole tower."""
        return text

    def fuse(self, image: States, text: States) -> Encoded:
        """Returns fused states [B, N, D], [B, L, D] and the joint feature [B, 2 D] of B aligned rows."""
        words, cells = self.text_transform(text.tokens), self.image_transform(image.tokens)
        for index, layer in enumerate(self.fusion):
            words, cells = run_block(layer, index, self.checkpointing, words, cells, text.mask, image.mask)
        return self._encoded(words, text.mask, cells)

    @torch.no_grad()
    def cross_attention(self, image: States, text: States) -> Tensor:
        """Returns the words' attention over image tokens [layers, B, H, L, N]: for overlays, not training."""
        words, cells = self.text_transform(text.tokens), self.image_transform(image.tokens)
        looks = []
        for layer in self.fusion:
            assert isinstance(layer, CoAttentionLayer)
            looks.append(layer.text.look(words, cells, text.mask, image.mask))
            words, cells = layer(words, cells, text.mask, image.mask)
        return torch.stack(looks)
