"""What an order deals: a data set's caption samples, or groups of an image's captions.

Where questions are trained on, they are dealt as captions are, and "caption" below means both.

With one caption an image a unit is a sample. With `captions_per_image` = k an image's captions are
permuted in every epoch and cut into groups of k; the last group repeats its own captions with
weight 0. Units are numbered through the rows, and finding unit u takes a coarse table of at most
2^16 sums and one block of the memory-mapped index: no table of units is held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dsvlp.data.dataset import Dataset
from dsvlp.data.tables import TASKS
from dsvlp.errors import DataError
from dsvlp.seed import fold, key_of

_BLOCKS = 1 << 16
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Captions:
    """Units looked up: G groups of k captions.

    Attributes:
        rows: int64 [G], the image of each group.
        samples: int64 [G, k].
        weight: float32 [G, k], 0 at repeats.
    """

    rows: np.ndarray
    samples: np.ndarray
    weight: np.ndarray


class Units:
    """Numbers the groups of `captions` captions of a data set, and looks them up.

    Args:
        dataset: the data set; samples of other tasks are passed over.
        captions: `captions_per_image`.
        tasks: the tasks whose samples are dealt.

    Raises:
        DataError: there is no caption.
    """

    def __init__(self, dataset: Dataset, captions: int, tasks: tuple[str, ...] = ("caption",)) -> None:
        self._dataset, self._captions = dataset, captions
        self._dealt_tasks = np.array([task in tasks for task in TASKS])
        if captions == 1:
            self._table = CountTable(dataset.samples_count, self._is_dealt)
        else:
            chunks = range(0, dataset.samples_count, _CHUNK)
            self._every_sample = all(self._is_dealt(slice(at, at + _CHUNK)).all() for at in chunks)
            self._table = CountTable(dataset.images, self._groups_of)
        self.count = self._table.total
        if not self.count:
            raise DataError(
                f"{dataset.path} has no {'s and no '.join(tasks)}s",
                "at least one",
                "Choose another data set; questions are dealt where a recipe has [objectives.qa]",
            )

    @property
    def per_shard(self) -> list[int]:
        """Returns the units of each shard, in the order of the files."""
        rows = np.array([shard.first for shard in self._dataset.shards] + [self._dataset.images])
        elements = self._dataset.first_sample[rows] if self._captions == 1 else rows
        return [int(count) for count in np.diff([self._table.before(int(element)) for element in elements])]

    def captions(self, units: np.ndarray, keys: np.ndarray) -> Captions:
        """Returns the groups of `units` int64 [G].

        Args:
            units: numbers below `count`.
            keys: int64 [G], a hash of (seed, epoch, source): each image's captions are permuted by it.
        """
        elements, ordinals = self._table.find(units)
        if self._captions == 1:
            rows = np.asarray(self._dataset.samples["rows"][elements, 0])
            return Captions(rows, elements[:, None], np.ones((len(units), 1), np.float32))
        samples, weight = self._dealt(elements, ordinals, keys)
        return Captions(elements, samples, weight)

    def _dealt(
        self, rows: np.ndarray, ordinals: np.ndarray, keys: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns samples int64 [G, k] and weights [G, k] of the ordinal-th groups of `rows`."""
        first, end = self._dataset.first_sample[rows], self._dataset.first_sample[rows + 1]
        span = np.arange(int((end - first).max()))
        samples = first[:, None] + span  # [G, most]
        inside = samples < end[:, None]
        inside &= self._is_dealt(np.where(inside, samples, 0))
        draws = fold(fold(keys, key_of("captions"))[:, None], samples)
        order = np.lexsort((draws, ~inside), axis=1)  # captions first, in a drawn order
        begin = ordinals * self._captions
        left = np.minimum(inside.sum(1) - begin, self._captions)  # captions of this group, 1 to k
        slot = np.arange(self._captions)
        place = begin[:, None] + slot % left[:, None]  # [G, k]
        dealt = np.take_along_axis(samples, np.take_along_axis(order, place, 1), 1)
        return dealt, (slot < left[:, None]).astype(np.float32)

    def _is_dealt(self, samples: np.ndarray | slice) -> np.ndarray:
        """Returns bool: which samples are of the tasks that are dealt."""
        dealt: np.ndarray = self._dealt_tasks[self._dataset.samples["task"][samples]]
        return dealt

    def _groups_of(self, rows: np.ndarray | slice) -> np.ndarray:
        """Returns int64: how many groups the images of these rows have."""
        rows = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        first, end = self._dataset.first_sample[rows], self._dataset.first_sample[rows + 1]
        captions: np.ndarray = end - first
        if not self._every_sample:
            ends = np.cumsum(captions)  # of the images' samples, one image's behind the other's
            samples = np.arange(captions.sum()) + np.repeat(end - ends, captions)
            before = np.concatenate([[0], np.cumsum(self._is_dealt(samples))])
            captions = before[ends] - before[ends - captions]
        return -(-captions // self._captions)


class CountTable:
    """Finds the u-th unit where element e has `counts(e)` units, by sums over blocks.

    Args:
        elements: number of elements.
        counts: how many units each of some elements has, int64 [E] or a slice.
    """

    def __init__(self, elements: int, counts: Callable[[np.ndarray | slice], np.ndarray]) -> None:
        self._elements, self._counts = elements, counts
        self._block = max(64, 1 << max(0, (elements - 1) // _BLOCKS).bit_length())
        self._single = True  # every element has one unit: finding is the identity
        sums = [np.zeros(1, np.int64)]
        step = max(_CHUNK, self._block)
        for begin in range(0, elements, step):
            part = counts(slice(begin, min(begin + step, elements))).astype(np.int64)
            self._single &= bool((part == 1).all())
            sums.append(np.add.reduceat(part, np.arange(0, len(part), self._block)))
        self._before = np.cumsum(np.concatenate(sums))
        self.total = int(self._before[-1])

    def before(self, element: int) -> int:
        """Returns the units of all elements below `element`."""
        block = min(element // self._block, len(self._before) - 1)
        begin = block * self._block
        inside = int(self._counts(slice(begin, element)).sum()) if element > begin else 0
        return int(self._before[block]) + inside

    def find(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (element [N], which of its units [N]) of units int64 [N]."""
        if self._single:
            return units, np.zeros_like(units)
        most = max(1, _CHUNK // self._block)
        parts = [self._found(units[at : at + most]) for at in range(0, max(1, len(units)), most)]
        elements, ordinals = (np.concatenate(part) for part in zip(*parts, strict=True))
        return elements, ordinals

    def _found(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns what `find` does, from the counts of all blocks that hold one of the units."""
        blocks = np.unique(np.searchsorted(self._before, units, "right") - 1)
        elements = blocks[:, None] * self._block + np.arange(self._block)
        inside = elements < self._elements
        counts = inside * self._counts(np.where(inside, elements, 0).ravel()).reshape(elements.shape)
        ends = self._before[blocks, None] + np.cumsum(counts, 1)  # sorted, since blocks are
        place = np.searchsorted(ends.ravel(), units, "right")
        return elements.ravel()[place], units - (ends - counts).ravel()[place]
