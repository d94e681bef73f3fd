"""SVL's text tower: the first layers of a transformers BertModel, without its pooler (SVL, S5).

Legend: T texts, L tokens, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import BertConfig, BertModel

from dsvlp.layers.attention import NORM_EPS, initial_deviation
from dsvlp.layers.recompute import Mode, run_block
from dsvlp.models.pretrained import load_bert
from dsvlp.recipe import BERT, RoBERTa

POSITIONS = 512  # rows of BERT's published position table; the recipe bounds max_length by it


class BERTTower(BertModel):
    """transformers' layers under transformers' names, driven one by one so that they can be recomputed.

    Attributes:
        checkpointing: which layers are recomputed in backward.
    """

    checkpointing: Mode = "none"

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.set_attn_implementation("sdpa")

    @classmethod
    def from_recipe(cls, table: BERT, pretrained: bool) -> "BERTTower":
        """Returns the tower, from its published weights where `pretrained`."""
        config = BertConfig(max_position_embeddings=POSITIONS, layer_norm_eps=NORM_EPS, **sizes(table))
        return load_bert(cls, config, str(table.weights)) if pretrained else cls(config)

    def forward(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:  # type: ignore[override]
        """Returns states [T, L, D] of int64 ids [T, L]; mask bool [T, L], True at real tokens."""
        return self.run_layers(self.embeddings(text_ids), text_mask)

    def run_layers(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Returns embedded tokens [B, L, D], words or anything else, after all layers; mask bool [B, L]."""
        keys = mask[:, None, None]  # [B, 1, 1, L]
        for index, layer in enumerate(self.encoder.layer):
            tokens = run_block(layer, index, self.checkpointing, tokens, keys)
        return tokens


def sizes(table: BERT | RoBERTa) -> dict[str, Any]:
    """Returns what the configurations of BERT and RoBERTa have in common, under transformers' names."""
    return {
        "vocab_size": table.vocabulary,
        "hidden_size": table.width,
        "num_hidden_layers": table.layers,
        "num_attention_heads": table.heads,
        "intermediate_size": table.feed_forward,
        "hidden_act": "gelu",
        "hidden_dropout_prob": table.dropout,
        "attention_probs_dropout_prob": table.dropout,
        "initializer_range": initial_deviation(table.width),
    }
