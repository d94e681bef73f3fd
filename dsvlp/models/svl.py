"""SVL: image tower, text tower, cross-modality layers (specification S1 to S8).

Legend: I images, T texts, B pairs, N image tokens, L text tokens, D width, H heads, h x w grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsvlp.layers.attention import initialise
from dsvlp.layers.cross_modality import CrossModalityLayer
from dsvlp.layers.poolers import Pooler
from dsvlp.layers.queries import QueryDecoder
from dsvlp.layers.recompute import Mode, run_block
from dsvlp.models.bert import BERTTower
from dsvlp.models.resnet import ResNetTower
from dsvlp.models.vit import ViTTower
from dsvlp.recipe import SVLModel, ViT
from dsvlp.types import Encoded, States


class SVL(nn.Module):
    """Two streams that meet in cross-modality layers. All sizes come from the recipe.

    Attributes:
        width: D.
        pooled_width: width of the pooled feature, D.
        image_width, text_width: width of the two towers' states, D.
        stride: pixels of a grid cell's side.
        segmentation_stride: pixels of a side of SEGL's cells.
        map_width: channels of the finest image map.
        visual_queries: number of SPL's queries that replace the grid, 0 for the grid itself.
    """

    def __init__(self, table: SVLModel, image: ViTTower | ResNetTower, text: BERTTower) -> None:
        super().__init__()
        sizes = table.text
        self.image = image
        self.text = text
        self.queries = None
        if table.visual_queries:
            self.queries = QueryDecoder(
                table.visual_queries,
                table.image_size // image.stride,
                sizes.width,
                sizes.heads,
                sizes.feed_forward,
                sizes.dropout,
            )
        self.cross = nn.ModuleList(
            CrossModalityLayer(
                sizes.width, sizes.heads, sizes.feed_forward, sizes.dropout, table.share_cross_attention
            )
            for _ in range(table.cross_layers)
        )
        self.pooler = Pooler(sizes.width)
        for part in (self.queries, self.cross, self.pooler):
            if part is not None:
                initialise(part, sizes.width)
        self.width = self.pooled_width = self.image_width = self.text_width = sizes.width
        self.stride = image.stride
        self.segmentation_stride = image.segmentation_stride
        self.map_width = image.map_width
        self.visual_queries = table.visual_queries
        self.checkpointing: Mode = "none"

    @classmethod
    def from_recipe(cls, table: SVLModel) -> "SVL":
        """Returns the model, its towers from published weights where the recipe says `pretrained`.

        Raises:
            RecipeError: published weights that cannot be read or do not fit.
        """
        size, width, pretrained = table.image_size, table.text.width, table.pretrained
        image: ViTTower | ResNetTower
        if isinstance(table.image, ViT):
            image = ViTTower.from_recipe(table.image, size, pretrained)
        else:
            image = ResNetTower.from_recipe(table.image, size, width, pretrained)
        return cls(table, image, BERTTower.from_recipe(table.text, pretrained))

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The text tower's word table, to which MLM ties its decoder."""
        return self.text.embeddings.word_embeddings

    def set_activation_checkpointing(self, mode: Mode) -> None:
        """Chooses the blocks whose activations are recomputed in backward, see `layers.recompute`."""
        self.checkpointing = self.image.checkpointing = self.text.checkpointing = mode

    def encode_image(
        self, images: Tensor, image_mask: Tensor | None = None, image_keys: Tensor | None = None
    ) -> States:
        """Returns image states before fusion: tokens [I, N, D], and maps of the grid, finest first.

        With `visual_queries` the tokens are the queries' outputs. The last map is always the grid of
        the tower's tokens [I, D, h, w].

        Args:
            images: float32 [I, 3, H, W]; any size that the stride divides.
            image_mask: not used: SVL's crops are full squares, their padding is mean colour that the
                model sees as the paper's does.
        """
        tokens, *maps = self.image(images)
        if self.queries is not None:
            tokens = self.queries(maps[-1])
        return States(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool), tuple(maps))

    def encode_text(self, text_ids: Tensor, text_mask: Tensor) -> States:
        """Returns text states before fusion [T, L, D] of int64 ids and bool mask [T, L]."""
        return States(self.text(text_ids, text_mask), text_mask)

    def finish_image(self, image: States) -> States:
        """Returns the states as they are: the fusion stands on top of the whole tower."""
        return image

    def finish_text(self, text: States) -> States:
        """Returns the states as they are: the fusion stands on top of the whole tower."""
        return text

    def fuse(self, image: States, text: States) -> Encoded:
        """Returns fused states and the pooled feature [B, D] of B aligned rows of both.

        The feature is the language branch's [CLS] through a tanh layer (S7).
        """
        words, cells = text.tokens, image.tokens
        for index, layer in enumerate(self.cross):
            words, cells = run_block(layer, index, self.checkpointing, words, cells, text.mask)
        return Encoded(States(cells, image.mask), States(words, text.mask), self.pooler(words[:, 0]))

    @torch.no_grad()
    def cross_attention(self, image: States, text: States) -> Tensor:
        """Returns the words' attention over image tokens [layers, B, H, L, N]: for overlays, not training."""
        words, cells, seen = text.tokens, image.tokens, []
        for layer in self.cross:
            assert isinstance(layer, CrossModalityLayer)
            seen.append(layer.words_over_cells(words, cells))
            words, cells = layer(words, cells, text.mask)
        return torch.stack(seen)
