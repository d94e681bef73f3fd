"""Several sources in one stream, by weights: which source stands at position n, and its own count there.

The weights become whole counts in a cycle of at most 4096 positions, and each source's places are
spread evenly over the cycle (its j-th of c falls near (j + 1/2) / c of the way): a low-discrepancy
sequence whose counts follow the weights at every position to within a few units, with no draw and
no state. A source's epoch is its own count divided by its own size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_CYCLE = 4096


class Mixture:
    """Position -> (source, position in that source's own endless stream), in closed form.

    Args:
        weights: positive, one a source; only their proportions count.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        counts = whole_counts(weights)
        places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
        owners = np.repeat(np.arange(len(counts)), counts)
        self._sources = owners[np.lexsort((owners, places))]
        one_hot = self._sources[:, None] == np.arange(len(counts))
        before = np.cumsum(one_hot, axis=0) - one_hot
        self._before = before[np.arange(len(self._sources)), self._sources]
        self._counts = np.asarray(counts, np.int64)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (source [N], how many earlier positions are that source's [N]) for int64 [N]."""
        cycle, place = np.divmod(positions, len(self._sources))
        source = self._sources[place]
        return source, cycle * self._counts[source] + self._before[place]


def whole_counts(weights: Sequence[float]) -> list[int]:
    """Returns the smallest whole counts in the proportions of `weights`, their sum at most 4096.

    Where none are exact, the counts of a cycle of 4096 by largest remainder, each at least 1.
    """
    share = np.asarray(weights, np.float64) / np.sum(weights)
    for cycle in range(len(share), _CYCLE + 1):
        counts = np.rint(share * cycle)
        if counts.all() and np.abs(share * cycle - counts).max() < 1e-9 * cycle:
            return [int(count) for count in counts]
    counts = np.maximum(np.floor(share * _CYCLE), 1)
    for index in np.argsort(counts - share * _CYCLE)[: max(0, int(_CYCLE - counts.sum()))]:
        counts[index] += 1
    return [int(count) for count in counts]
