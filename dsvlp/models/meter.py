"""METER: FIBER's two towers with the fusion on top of them, FIBER's rival in its paper (FIBER, 5).

The six co-attention layers read the finished towers through a Linear each. METER's embeddings of the
two modalities are those Linears' biases.

Legend: I images, T texts, B pairs, L text tokens, N image tokens, D text width, C final image width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsvlp.layers.attention import initialise
from dsvlp.layers.co_attention import CoAttentionLayer
from dsvlp.layers.poolers import Pooler, joint_feature
from dsvlp.layers.recompute import Mode, run_block
from dsvlp.models.roberta import RoBERTaTower
from dsvlp.models.swin import SwinTower
from dsvlp.recipe import METERModel
from dsvlp.types import Encoded, States


class METER(nn.Module):
    """Two finished towers and co-attention layers on top of them.

    Attributes:
        width: D, width of fused tokens.
        pooled_width: width of the joint feature, 2 D.
        image_width, text_width: of the unimodal tokens.
        stride: pixels of a side of the last stage's cells.
    """

    visual_queries = 0

    def __init__(self, table: METERModel, image: SwinTower, text: RoBERTaTower) -> None:
        super().__init__()
        sizes, width = table.fusion, table.text.width
        self.image, self.text = image, text
        self.image_transform, self.text_transform = nn.Linear(image.width, width), nn.Linear(width, width)
        self.fusion = nn.ModuleList(
            CoAttentionLayer(width, sizes.heads, sizes.feed_forward, sizes.dropout)
            for _ in range(sizes.layers)
        )
        self.image_pooler, self.text_pooler = Pooler(width), Pooler(width)
        for part in (
            *(self.image_transform, self.text_transform),
            *(self.fusion, self.image_pooler, self.text_pooler),
        ):
            initialise(part, width)
        self.width = self.text_width = width
        self.pooled_width = 2 * width
        self.image_width = image.width
        self.stride = table.stride
        self.checkpointing: Mode = "none"

    @classmethod
    def from_recipe(cls, table: METERModel) -> "METER":
        """Returns the model, its towers from published weights where the recipe says `pretrained`.

        Raises:
            RecipeError: published weights that cannot be read or do not fit.
        """
        image = SwinTower.from_recipe(table.image, table.image_size, table.pretrained)
        return cls(table, image, RoBERTaTower.from_recipe(table.text, table.pretrained))

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The text tower's word table."""
        return self.text.embeddings.word_embeddings

    def set_activation_checkpointing(self, mode: Mode) -> None:
        """Chooses the blocks whose activations are recomputed in backward, see `layers.recompute`."""
        self.checkpointing = self.image.checkpointing = self.text.checkpointing = mode

    def encode_image(self, images: Tensor, image_mask: Tensor | None = None) -> States:
        """Returns the image tower's tokens [I, N, C], of images [I, 3, H, W] of the model's own size."""
        tokens = self.image(images)
        return States(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool))

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
        pooled = joint_feature(self.text_pooler, self.image_pooler, words, cells)
        return Encoded(States(cells, image.mask), States(words, text.mask), pooled)

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
