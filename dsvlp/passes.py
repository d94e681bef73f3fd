"""One step's forward passes: asked for by view and kind, run on demand, remembered.

Two objectives that ask for the same view share its pass (SVL: all on `joint`); objectives on
different views share what their batches share. A prefix is shared by identity: a view made with
`dataclasses.replace` keeps the tensors it did not touch, so an image encoder runs once for a
`clean` view and a `masked` view whose images are the same tensor (FIBER's shared prefixes), and a
text encoder once where only the image was masked. Floor 1: knows no model and no loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from dsvlp.types import Batch, Encoded, States


class Encoder(Protocol):
    """What passes need of a model. All three go through `forward` hooks of the model's submodules."""

    def encode_image(self, images: Tensor, image_mask: Tensor | None) -> States:
        """Returns image states [I, N, D]."""

    def encode_text(self, text_ids: Tensor, text_mask: Tensor) -> States:
        """Returns text states [T, L, D]."""

    def fuse(self, image: States, text: States) -> Encoded:
        """Returns fused states of B aligned rows of both."""


class Passes:
    """Runs and remembers the forward passes of one micro-batch.

    Args:
        model: the encoder.
        views: view name -> batch as the objectives left it.
    """

    def __init__(self, model: Encoder, views: dict[str, Batch]) -> None:
        self._model = model
        self._views = views
        self._images: list[tuple[Tensor, Tensor | None, States]] = []
        self._texts: list[tuple[Tensor, Tensor, States]] = []
        self._fused: dict[str, Encoded] = {}

    def view(self, name: str) -> Batch:
        """Returns the prepared batch of a view."""
        return self._views[name]

    def image(self, view: str) -> States:
        """Returns image states before fusion, one row an image: [I, N, D]."""
        batch = self._views[view]
        return _remember(self._images, (batch.images, batch.image_mask), self._model.encode_image)

    def text(self, view: str) -> States:
        """Returns text states before fusion, one row a text: [T, L, D]."""
        batch = self._views[view]
        return _remember(self._texts, (batch.text_ids, batch.text_mask), self._model.encode_text)

    def fused(self, view: str) -> Encoded:
        """Returns fused states, one row a pair: tokens [P, ., D], pooled [P, D]."""
        if view not in self._fused:
            pairs = self._views[view].pairs
            image = select(self.image(view), pairs[:, 0])
            text = select(self.text(view), pairs[:, 1])
            self._fused[view] = self._model.fuse(image, text)
        return self._fused[view]


def select(states: States, rows: Tensor) -> States:
    """Returns the states of the given rows; maps stay with the images and are not repeated."""
    return States(states.tokens[rows], states.mask[rows])


def _remember(known: list, arguments: tuple[Tensor, Tensor | None], run: Callable[..., States]) -> States:
    for first, second, states in known:
        if first is arguments[0] and second is arguments[1]:
            return states
    states = run(*arguments)
    known.append((*arguments, states))
    return states
