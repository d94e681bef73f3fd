"""Where a picture's objects are: the boxes that its data set gives, or the cells of a grid.

A detector is the third source, see `detector.py`.

Legend: I images, N objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dsvlp.data.dataset import Dataset
from dsvlp.data.rows import StoredRow
from dsvlp.errors import DataError
from dsvlp.types import LabelTable


@dataclass(frozen=True)
class Objects:
    """Objects of some images, the most confident first, empty places last.

    Attributes:
        boxes: float32 [I, N, 4], left, top, right, bottom as shares of the image.
        labels: int64 [I, N], classes of the source's label table, -1 in empty places.
        confidences: float32 [I, N] in [0, 1].
        mask: bool [I, N], True at objects.
    """

    boxes: Tensor
    labels: Tensor
    confidences: Tensor
    mask: Tensor


class ObjectSource(Protocol):
    """What finds the objects of pictures.

    Attributes:
        table: the classes.
        annotations: what a row must bring beside its picture, as `RowReader` names it.
    """

    table: LabelTable
    annotations: frozenset[str]

    def find(self, pictures: Sequence[Tensor], rows: Sequence[StoredRow]) -> Objects:
        """Returns the objects of pictures uint8 [3, H, W] of any sizes, on the pictures' device."""


class GivenBoxes:
    """The boxes and classes that stand in the data set, all of confidence 1.

    Where an image has more than N, the largest are taken; where it has fewer, places stay empty.

    Args:
        dataset: with boxes.
        objects: N.

    Raises:
        DataError: it has none.
    """

    annotations = frozenset({"boxes"})

    def __init__(self, dataset: Dataset, objects: int) -> None:
        if dataset.boxes is None:
            raise DataError(
                f"{dataset.path} has no boxes",
                "boxes in the data set with --boxes given",
                "Take a detector's, --detector NAME, or a grid's, --boxes grid",
            )
        self.table, self._objects = dataset.boxes, objects
        self._class_of = {id: number for number, id in enumerate(dataset.boxes.ids)}

    def find(self, pictures: Sequence[Tensor], rows: Sequence[StoredRow]) -> Objects:
        """Returns the rows' own boxes."""
        boxes = np.zeros((len(rows), self._objects, 4), np.float32)
        labels = np.full((len(rows), self._objects), -1, np.int64)
        for number, row in enumerate(rows):
            left, top, right, bottom = row.boxes_xyxy.T
            chosen = np.argsort(-(right - left) * (bottom - top), kind="stable")[: self._objects]
            size = np.array([row.width, row.height] * 2, np.float32)
            boxes[number, : len(chosen)] = row.boxes_xyxy[chosen] / size
            labels[number, : len(chosen)] = [self._class_of[id] for id in row.box_labels[chosen].tolist()]
        device = pictures[0].device
        classes = torch.from_numpy(labels).to(device)
        mask = classes >= 0
        return Objects(torch.from_numpy(boxes).to(device), classes, mask.float(), mask)


class GridBoxes:
    """The cells of a square grid over the whole picture, in reading order: objects without any detector.

    All are of one class and of confidence 1 ("In Defense of Grid Features" shows that a grid's features
    serve as well as regions').

    Args:
        objects: N, a square number.

    Raises:
        DataError: it is none.
    """

    annotations: frozenset[str] = frozenset()

    def __init__(self, objects: int) -> None:
        side = isqrt(objects)
        if side * side != objects:
            raise DataError(
                f"--boxes grid with --objects {objects}",
                "a square number: the grid has as many lines as columns",
                f"Use --objects {side * side} or {(side + 1) ** 2}",
            )
        self.table = LabelTable("grid", (0,), ("cell",))
        lines, columns = np.divmod(np.arange(objects), side)
        cells = np.stack([columns, lines, columns + 1, lines + 1], 1) / side
        self._boxes = torch.from_numpy(cells.astype(np.float32))  # [N, 4]

    def find(self, pictures: Sequence[Tensor], rows: Sequence[StoredRow]) -> Objects:
        """Returns the same cells for every picture."""
        device, shape = pictures[0].device, (len(pictures), len(self._boxes))
        return Objects(
            self._boxes.to(device).expand(len(pictures), -1, -1),
            torch.zeros(shape, dtype=torch.long, device=device),
            torch.ones(shape, device=device),
            torch.ones(shape, dtype=torch.bool, device=device),
        )
