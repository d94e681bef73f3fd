"""A sequence of draws from one key: scalars for scenes and texts, bytes for the noise of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from dsvlp.seed import uniform

T = TypeVar("T")

_BLOCK = 128


class Draws:
    """Draws one after the other, all determined by the key alone.

    Args:
        key: a 64-bit key of `dsvlp.seed.key_of`; another purpose needs another key.
    """

    def __init__(self, key: int) -> None:
        self._key = key
        self._drawn = 0
        self._block: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Returns a number in [low, high)."""
        block, place = divmod(self._drawn, _BLOCK)
        if place == 0:
            keys = np.array([self._key], dtype=np.int64)
            self._block = uniform(keys, f"draws {block}", _BLOCK)[0].tolist()
        self._drawn += 1
        return low + (high - low) * self._block[place]

    def below(self, count: int) -> int:
        """Returns an integer of 0 .. count-1."""
        return int(self.uniform() * count)

    def choice(self, items: Sequence[T]) -> T:
        """Returns one of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Returns the items in a drawn order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in items]


def noise(key: int, shape: tuple[int, ...]) -> np.ndarray:
    """Returns uint8 noise of `shape`: Philox's raw bits, which NumPy keeps stable over versions."""
    count = int(np.prod(shape))
    words = np.random.Philox(key=key % 2**64).random_raw((count + 7) // 8)
    return words.astype("<u8").view(np.uint8)[:count].reshape(shape)
