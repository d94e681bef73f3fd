"""What models of one Transformer have in common: BERT reads embedded words and embedded parts of an image.

Legend: I images, T texts, N image tokens, L text tokens, D width.
"""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from dsvlp.models.bert import BERTTower
from dsvlp.types import States


class JointModel(nn.Module):
    """A BERT whose layers read words and image together; what it starts from are embeddings of both.

    Attributes:
        width: D.
        pooled_width: width of the joint feature, D.
        joint: one Transformer reads words and image.
    """

    visual_queries = 0
    joint = True

    def __init__(self, text: BERTTower) -> None:
        super().__init__()
        self.text = text
        self.width = self.pooled_width = int(text.config.hidden_size)

    @classmethod
    def from_recipe(cls, table: Any) -> Self:
        """Returns the model, its towers from published weights where the recipe says `pretrained`.

        Raises:
            RecipeError: published weights that cannot be read or do not fit.
        """
        return cls(table, BERTTower.from_recipe(table.text, table.pretrained))  # type: ignore[call-arg]

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The word table, to which MLM ties its decoder."""
        return self.text.embeddings.word_embeddings

    def encode_text(self, text_ids: Tensor, text_mask: Tensor) -> States:
        """Returns embedded words with their positions [T, L, D] of int64 ids and bool mask [T, L]."""
        return States(self.text.embeddings(text_ids), text_mask)

    def finish_image(self, image: States) -> States:
        """Returns the states [I, N, D] as they are: nothing above the embeddings reads an image alone."""
        return image

    def finish_text(self, text: States) -> States:
        """Returns the states as they are: nothing above the embeddings reads a text alone."""
        return text
