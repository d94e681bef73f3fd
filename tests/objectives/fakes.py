"""Passes whose states are given, so that an objective can be tested without a model."""

from __future__ import annotations

import torch
from torch import Tensor

from dsvlp.types import Encoded, States


class FakePasses:
    """Answers every view with the same states."""

    def __init__(
        self,
        maps: tuple[Tensor, ...] = (),
        image: Tensor | None = None,
        text: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> None:
        tokens = maps[-1].flatten(2).transpose(1, 2) if image is None and maps else image
        self._image = None if tokens is None else _states(tokens, maps)
        self._fused = Encoded(self._image, None if text is None else _states(text), pooled)

    def image(self, view: str) -> States:
        """Returns the given image states."""
        assert self._image is not None
        return self._image

    def fused(self, view: str) -> Encoded:
        """Returns the given fused states."""
        return self._fused


def _states(tokens: Tensor, maps: tuple[Tensor, ...] = ()) -> States:
    return States(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), maps)
