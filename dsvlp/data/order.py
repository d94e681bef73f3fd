"""The order of an epoch, computed and never stored: an endless stream of units, shard by shard.

A *unit* is what is dealt whole: a sample, or a group of one image's captions. Units lie in shards
(a `.beton` file each). In every epoch the shards are permuted, cut into windows of `open_shards`,
and the units of a window permuted together, so that a process keeps few shards open. Both
permutations are Feistel networks on `dsvlp.seed`'s hash with cycle walking (Black, Rogaway:
"Ciphers with arbitrary finite domains", CT-RSA 2002): position -> unit costs a few hashes, and
memory does not grow with the number of units. Position n of the endless stream is place
n % units of epoch n // units: no unit is dropped or repeated in an epoch, and a global batch may
lie across two epochs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dsvlp.seed import fold, key_of

_ROUNDS = 6


class Permutation:
    """A keyed bijection of 0 .. size-1, evaluated at any place without a table.

    Args:
        size: number of elements.
        key: which of the permutations.
    """

    def __init__(self, size: int, key: int) -> None:
        bits = max(2, (size - 1).bit_length())
        self._size = size
        self._low_bits = bits // 2
        self._low_mask = (1 << self._low_bits) - 1
        self._high_mask = (1 << (bits - self._low_bits)) - 1
        self._keys = [key_of(key, number) for number in range(_ROUNDS)]

    def __call__(self, index: np.ndarray) -> np.ndarray:
        """Returns the images of `index`, int64 of any shape, values 0 .. size-1."""
        out = self._network(index)
        # The network permutes the next power of two; walking its cycle comes back below `size`.
        while (outside := out >= self._size).any():
            out[outside] = self._network(out[outside])
        return out

    def _network(self, value: np.ndarray) -> np.ndarray:
        low, high = value & self._low_mask, value >> self._low_bits
        for number, key in enumerate(self._keys):
            if number % 2:
                low = low ^ (fold(high + key, number) & self._low_mask)
            else:
                high = high ^ (fold(low + key, number) & self._high_mask)
        return (high << self._low_bits) | low


class Order:
    """The endless stream of one source's units.

    Args:
        shard_units: units of each shard, in the order of the files; units are numbered through.
        open_shards: shards of a window.
        key: hash of the seed and the source.
    """

    def __init__(self, shard_units: Sequence[int], open_shards: int, key: int) -> None:
        self._sizes = np.asarray(shard_units, np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._open_shards, self._key = open_shards, key
        self.units = int(self._sizes.sum())

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (epoch [N], unit [N]) at positions int64 [N] of the endless stream."""
        epochs, places = np.divmod(positions, self.units)
        units = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            units[here] = self._permuted(int(epoch), places[here])
        return epochs, units

    def _permuted(self, epoch: int, places: np.ndarray) -> np.ndarray:
        key = key_of(self._key, epoch, "order")
        shards = Permutation(len(self._sizes), key_of(key, "shards"))(np.arange(len(self._sizes)))
        ends = np.cumsum(self._sizes[shards])
        last = np.arange(self._open_shards, len(shards) + self._open_shards, self._open_shards) - 1
        window_ends = ends[np.minimum(last, len(shards) - 1)]
        windows = np.searchsorted(window_ends, places, "right")
        units = np.empty_like(places)
        for window in np.unique(windows):
            here = windows == window
            start = int(window_ends[window - 1]) if window else 0
            size = int(window_ends[window]) - start
            inside = Permutation(size, key_of(key, int(window), "window"))(places[here] - start) + start
            slot = np.searchsorted(ends, inside, "right")
            shard = shards[slot]
            units[here] = self._starts[shard] + inside - (ends[slot] - self._sizes[shard])
        return units
