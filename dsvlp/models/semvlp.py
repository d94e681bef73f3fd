"""SemVLP: one transformer that reads words and objects as one stream or as two (specification M1 to M7).

**Single**: objects and words in one sequence, for low-level alignment; the joint feature is [CLS]'s.
**Two**: the words go through all layers alone; then the objects go through the same layers, and above
`cross_from` a cross-attention between self-attention and feed-forward reads the words' last states: for
high-level alignment; the joint feature is [IMG]'s. The text never sees the image there.

Legend: I images, T texts, B pairs, N objects, L text tokens, F feature width, D width.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertLayer

from dsvlp.layers.attention import initialise
from dsvlp.layers.bert import CrossedLayer, copy_attention
from dsvlp.layers.objects import ObjectEmbedding
from dsvlp.layers.recompute import Mode as Recomputed
from dsvlp.layers.recompute import run_block
from dsvlp.models.bert import BERTTower
from dsvlp.models.joint import JointModel
from dsvlp.recipe import SemVLPModel
from dsvlp.types import Encoded, Mode, States


class SemVLP(JointModel):
    """BERT, an embedding of objects, and cross-attention that is plugged into BERT's upper layers.

    Attributes:
        feature_width: F.
        cross_from: layers without cross-attention, from below.
        inference: the mode where none is said.
    """

    def __init__(self, table: SemVLPModel, text: BERTTower) -> None:
        super().__init__(text)
        sizes = table.text
        average = table.box_fuse == "avg_ln"
        self.objects = ObjectEmbedding(
            table.feature_width, sizes.width, sizes.dropout, average, table.norm_features
        )
        self.cross = nn.ModuleList(
            CrossedLayer(sizes.width, sizes.heads, sizes.dropout)
            for _ in range(table.cross_from, sizes.layers)
        )
        initialise(self.cross, sizes.width)
        self.feature_width, self.cross_from = table.feature_width, table.cross_from
        self._copies = table.cross_start == "copy"
        self.start_cross()
        self.inference: Mode = table.inference
        self.checkpointing: Recomputed = "none"

    def start_cross(self) -> None:
        """Copies the layers' self-attention, as it is now, where `cross_start` says so (M7c)."""
        if self._copies:
            for layer, cross in zip(self.text.encoder.layer[self.cross_from :], self.cross, strict=True):
                copy_attention(cast(BertLayer, layer).attention, cast(CrossedLayer, cross))

    def set_activation_checkpointing(self, mode: Recomputed) -> None:
        """Chooses the layers whose activations are recomputed in backward, see `layers.recompute`."""
        self.checkpointing = self.text.checkpointing = mode

    def encode_image(
        self, images: Tensor, image_mask: Tensor | None = None, image_keys: Tensor | None = None
    ) -> States:
        """Returns [IMG] and the embedded objects [I, 1 + N, D]; nothing is drawn here.

        Args:
            images: float16 [I, N, F + 4], an object's feature and its box as shares of the image.
            image_mask: bool [I, N], True at objects; None: all are there.
        """
        if image_mask is None:
            image_mask = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device)
        second = torch.ones(1, dtype=torch.long, device=images.device)
        tokens = self.objects(images, self.text.embeddings.token_type_embeddings(second))
        return States(tokens, F.pad(image_mask, (1, 0), value=True))

    def fuse(self, image: States, text: States, mode: Mode | None = None) -> Encoded:
        """Returns states [B, 1 + N, D] and [B, L, D] of B aligned rows of both, and the joint feature [B, D].

        Args:
            mode: None: that of inference. "halves" runs the same modules in the same order whatever the rows
                are, and takes an even number of them.
        """
        mode = mode or self.inference
        if mode == "halves":
            assert len(image.tokens) % 2 == 0, "a recipe of halves has an even micro-batch"
            return interleaved(
                self._single(_every_second(image, 0), _every_second(text, 0)),
                self._two(_every_second(image, 1), _every_second(text, 1)),
            )
        return self._single(image, text) if mode == "single" else self._two(image, text)

    def _single(self, image: States, text: States) -> Encoded:
        """Returns both after one sequence of both, and [CLS]'s state."""
        tokens = torch.cat((image.tokens, text.tokens), 1)
        tokens = self.text.run_layers(tokens, torch.cat((image.mask, text.mask), 1))
        objects, words = tokens.split((image.tokens.shape[1], text.tokens.shape[1]), 1)
        return Encoded(States(objects, image.mask), States(words, text.mask), words[:, 0])

    def _two(self, image: States, text: States) -> Encoded:
        """Returns the words after all layers, the objects that read them, and [IMG]'s state."""
        # Every second row lies apart: a compiled first layer would be another graph than the rest.
        words = self.text.run_layers(text.tokens.contiguous(), text.mask)
        objects, keys = image.tokens.contiguous(), image.mask[:, None, None]
        for index, layer in enumerate(self.text.encoder.layer):
            above = index - self.cross_from
            if above < 0:
                objects = run_block(layer, index, self.checkpointing, objects, keys)
            else:
                inputs = (layer, objects, keys, words, text.mask)
                objects = run_block(self.cross[above], index, self.checkpointing, *inputs)
        return Encoded(States(objects, image.mask), States(words, text.mask), objects[:, 0])


def _every_second(states: States, first: int) -> States:
    return States(states.tokens[first::2], states.mask[first::2])


def interleaved(even: Encoded, odd: Encoded) -> Encoded:
    """Returns the rows of both by turns: those at even places first. Both have equally many."""

    def by_turns(first: Tensor, second: Tensor) -> Tensor:
        return torch.stack((first, second), 1).flatten(0, 1)

    def streams(first: States | None, second: States | None) -> States:
        assert first is not None and second is not None
        return States(by_turns(first.tokens, second.tokens), by_turns(first.mask, second.mask))

    assert even.pooled is not None and odd.pooled is not None
    return Encoded(
        streams(even.image, odd.image), streams(even.text, odd.text), by_turns(even.pooled, odd.pooled)
    )
