"""What FIBER and METER share: a Swin and a RoBERTa tower, some fusion, transforms and the joint feature.

Legend: I images, T texts, B pairs, L text tokens, N image tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from dsvlp.layers.attention import initialise
from dsvlp.layers.poolers import Pooler, joint_feature
from dsvlp.layers.recompute import Mode
from dsvlp.models.roberta import RoBERTaTower
from dsvlp.models.swin import SwinTower
from dsvlp.recipe.model import Towers
from dsvlp.types import Encoded, States

Table = TypeVar("Table", bound=Towers)


class TwoTowers(nn.Module, Generic[Table]):
    """Two towers and their fusion, which a subclass makes and drives.

    Args:
        table: the model's table.
        image, text: the towers.

    Attributes:
        width: D, width of fused tokens.
        pooled_width: width of the joint feature, 2 D.
        image_width, text_width: of the unimodal tokens.
        stride: pixels of a side of the last stage's cells.
    """

    visual_queries = 0

    def __init__(self, table: Table, image: SwinTower, text: RoBERTaTower) -> None:
        super().__init__()
        width = table.text.width
        self.image, self.text = image, text
        self.fusion = nn.ModuleList(self._fusion(table))
        self.image_transform, self.text_transform = nn.Linear(image.width, width), nn.Linear(width, width)
        self.image_pooler, self.text_pooler = Pooler(width), Pooler(width)
        for part in (self.image_transform, self.text_transform, self.image_pooler, self.text_pooler):
            initialise(part, width)
        self.width = self.text_width = width
        self.pooled_width = 2 * width
        self.image_width = image.width
        self.stride = table.stride
        self.checkpointing: Mode = "none"

    @classmethod
    def from_recipe(cls, table: Table) -> Self:
        """Returns the model, its towers from published weights where the recipe says `pretrained`.

        Raises:
            RecipeError: published weights that cannot be read or do not fit.
        """
        image = SwinTower.from_recipe(table.image, table.image_size, table.pretrained)
        return cls(table, image, RoBERTaTower.from_recipe(table.text, table.pretrained))

    def _fusion(self, table: Table) -> Iterable[nn.Module]:
        """Returns the layers where the towers read each other, initialised."""
        raise NotImplementedError

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The text tower's word table."""
        return self.text.embeddings.word_embeddings

    def set_activation_checkpointing(self, mode: Mode) -> None:
        """Chooses the blocks whose activations are recomputed in backward, see `layers.recompute`."""
        self.checkpointing = self.image.checkpointing = self.text.checkpointing = mode

    def _encoded(self, words: Tensor, text_mask: Tensor, cells: Tensor) -> Encoded:
        """Returns fused words [B, L, D] and cells [B, N, D] with their joint feature [B, 2 D]."""
        pooled = joint_feature(self.text_pooler, self.image_pooler, words, cells)
        return Encoded(whole(cells), States(words, text_mask), pooled)


def whole(tokens: Tensor) -> States:
    """Returns image states of which every token counts: images are full squares."""
    return States(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool))
