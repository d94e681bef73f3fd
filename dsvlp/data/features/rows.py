"""Regions of images, before they are stored and after. Torch-free.

Legend: R images in a row, K objects of all of them, I images, N objects of an image, F feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from dsvlp.types import LabelTable

NO_CLASS = -1


@dataclass(frozen=True)
class RegionRows:
    """The regions of R successive images of a data set, as a source gives them: any number an image.

    Attributes:
        counts: int64 [R], objects of each image; 0 where nothing is known of it.
        features: float16 or float32 [K, F], image by image.
        boxes_xyxy: float32 [K, 4], pixels of the stored image.
        labels: int64 [K], stored ids of the source's label table; `NO_CLASS` throughout where it has none.
        confidences: float32 [K], in [0, 1].
    """

    counts: np.ndarray
    features: np.ndarray
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    confidences: np.ndarray

    def part(self, begin: int, end: int) -> RegionRows:
        """Returns the images begin .. end-1."""
        first, last = int(self.counts[:begin].sum()), int(self.counts[:end].sum())
        columns = (self.features, self.boxes_xyxy, self.labels, self.confidences)
        return RegionRows(self.counts[begin:end], *(column[first:last] for column in columns))

    @staticmethod
    def joined(parts: Sequence[RegionRows]) -> RegionRows:
        """Returns the images of several chunks as one."""
        columns = ([getattr(part, f.name) for part in parts] for f in fields(RegionRows))
        return RegionRows(*map(np.concatenate, columns))

    @staticmethod
    def nothing(width: int) -> RegionRows:
        """Returns one image of which nothing is known; `width`: F."""
        empty = np.zeros(0, np.float32)
        boxes = np.zeros((0, 4), np.float32)
        return RegionRows(
            np.zeros(1, np.int64), np.zeros((0, width), np.float16), boxes, np.zeros(0, np.int64), empty
        )


@dataclass(frozen=True)
class RegionSource:
    """Where the regions of a data set's images come from.

    Attributes:
        name: what reads or makes them ("LXMERT tsv"), for people and the manifest.
        detector: what found the boxes, classes and confidences.
        backbone: what made the features.
        width: F.
        table: the classes' label table, None where objects have no class.
        rows: first row -> the regions of this and every later row of the data set, in chunks of any size.
        arguments: everything that decides what `rows` yields, as JSON: an interrupted writing goes on only
            with equal arguments.
        missing: ids of the images that it has nothing of, where that is known beforehand.
    """

    name: str
    detector: str
    backbone: str
    width: int
    table: LabelTable | None
    rows: Callable[[int], Iterator[RegionRows]]
    arguments: dict[str, Any] = field(default_factory=dict)
    missing: Sequence[str] = ()


@dataclass(frozen=True)
class Regions:
    """Stored regions of I images, N objects each, filled up with nothing where there were fewer.

    Attributes:
        features: float16 [I, N, F], 0 where there is no object.
        boxes: float32 [I, N, 4]: left, top, right, bottom as shares of the image.
        labels: int64 [I, N], contiguous classes of the label table, `NO_CLASS` where there is none.
        confidences: float32 [I, N], in [0, 1].
        mask: bool [I, N], True at objects.
    """

    features: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    confidences: np.ndarray
    mask: np.ndarray
