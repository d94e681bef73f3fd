"""The text tower of FIBER and METER: a transformers RobertaModel, driven layer by layer (FIBER, 1.3).

Legend: T texts, L tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import RobertaConfig, RobertaModel
from transformers.models.roberta.modeling_roberta import RobertaLayer

from dsvlp.layers.recompute import Mode, run_block
from dsvlp.models.bert import sizes
from dsvlp.models.pretrained import load_roberta
from dsvlp.recipe import RoBERTa

NORM_EPS = 1e-5  # RoBERTa's, unlike BERT's 1e-12


class RoBERTaTower(RobertaModel):
    """transformers' layers under transformers' names, without its pooler; layers are counted from 0.

    Attributes:
        checkpointing: which layers are recomputed in backward.
    """

    checkpointing: Mode = "none"

    def __init__(self, config: RobertaConfig) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.set_attn_implementation("sdpa")

    @classmethod
    def from_recipe(cls, table: RoBERTa, pretrained: bool) -> "RoBERTaTower":
        """Returns the tower, from its published weights where `pretrained`.

        Raises:
            RecipeError: published weights that cannot be read or do not fit.
        """
        config = RobertaConfig(
            max_position_embeddings=table.positions,
            type_vocab_size=1,
            layer_norm_eps=NORM_EPS,
            pad_token_id=table.padding_id,
            **sizes(table),
        )
        return load_roberta(cls, config, str(table.weights)) if pretrained else cls(config)

    @property
    def layers(self) -> list[RobertaLayer]:
        """All layers in order."""
        return [layer for layer in self.encoder.layer if isinstance(layer, RobertaLayer)]

    def embed(self, text_ids: Tensor) -> Tensor:
        """Returns the first layer's input [T, L, D] of int64 ids [T, L]."""
        tokens: Tensor = self.embeddings(text_ids)
        return tokens

    def run(self, tokens: Tensor, keys: Tensor, start: int, stop: int) -> Tensor:
        """Returns what layer `stop` starts from, of what layer `start` starts from: [T, L, D].

        Args:
            keys: bool [T, 1, 1 or L, L], True where a token may look.
        """
        for number, layer in enumerate(self.layers[start:stop], start):
            tokens = run_block(layer, number, self.checkpointing, tokens, keys)
        return tokens

    def forward(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:  # type: ignore[override]
        """Returns states [T, L, D] of int64 ids and bool mask [T, L], untouched by any image."""
        return self.run(self.embed(text_ids), seen(text_mask), 0, len(self.layers))


def seen(text_mask: Tensor, causal: bool = False) -> Tensor:
    """Returns what each token may look at, bool [T, 1, 1, L]; [T, 1, L, L] where none may look ahead."""
    keys = text_mask[:, None, None]
    if not causal:
        return keys
    length = text_mask.shape[1]
    return keys & torch.ones(length, length, dtype=torch.bool, device=text_mask.device).tril()
