"""A row's map and boxes as classes: stored ids are looked up in the label tables, never guessed.

Legend: I images, K boxes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dsvlp.data.augment import Crop, place_boxes
from dsvlp.data.decode import BadImage
from dsvlp.data.rows import StoredRow
from dsvlp.errors import DataError
from dsvlp.types import LabelTable

PlacedBoxes = tuple[np.ndarray, np.ndarray, np.ndarray]
"""cxcywh float32 [K, 4] relative to the frame, classes [K], share of the area left [K]."""

_UNKNOWN = -2  # in a look-up table of labels: no class and not ignored
_IDS = 1 << 16


class Annotations:
    """Reads what the recipe's objectives ask for beside the image.

    Args:
        segmentation: the maps' label table where maps are wanted.
        boxes: the boxes' label table where boxes are wanted.
    """

    def __init__(self, segmentation: LabelTable | None, boxes: LabelTable | None) -> None:
        self.segmentation, self.boxes = segmentation, boxes
        self._map_classes = _class_of_id(segmentation) if segmentation else None
        self._box_classes = _class_of_id(boxes) if boxes else None

    def map_of(self, row: StoredRow, name: str) -> np.ndarray | BadImage | None:
        """Returns a row's map as int32 [H, W], -1 to ignore; None where there is or is wanted none.

        Raises:
            DataError: a stored label is not in the label table; `name` is in the message.
        """
        if self._map_classes is None or not row.map_png.size:
            return None
        stored = _decode_map(row)
        if isinstance(stored, BadImage):
            return stored
        return _look_up(stored, self._map_classes, self.segmentation, f"{name} has the segmentation label")

    def boxes_of(self, row: StoredRow, crop: Crop, name: str) -> PlacedBoxes | None:
        """Returns a row's boxes in the crop's frame; None where none are wanted.

        Raises:
            DataError: a stored label is not in the label table; `name` is in the message.
        """
        if self._box_classes is None:
            return None
        classes = _look_up(row.box_labels, self._box_classes, self.boxes, f"{name} has the box label")
        boxes, share = place_boxes(row.boxes_xyxy, crop)
        return boxes, classes, share


def _decode_map(row: StoredRow) -> np.ndarray | BadImage:
    try:
        with Image.open(io.BytesIO(row.map_png.tobytes()), formats=["PNG"]) as image:
            stored = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        return BadImage(f"its map cannot be decoded: {error}")
    if stored.shape != (row.height, row.width):
        return BadImage(f"its map has the shape {stored.shape}, the image is {row.height} x {row.width}")
    return stored


def _class_of_id(table: LabelTable) -> np.ndarray:
    """Returns int32 [65536]: stored id -> class, -1 to ignore, -2 where the table does not know it."""
    lookup = np.full(_IDS, _UNKNOWN, np.int32)
    if table.ignore is not None:
        lookup[table.ignore] = -1
    lookup[list(table.ids)] = np.arange(len(table.ids))
    return lookup


def _look_up(stored: np.ndarray, lookup: np.ndarray, table: LabelTable | None, what: str) -> np.ndarray:
    inside = stored[(stored >= 0) & (stored < _IDS)] if stored.dtype.itemsize > 2 else stored
    classes = lookup[stored] if inside.size == stored.size else None
    if classes is None or (classes == _UNKNOWN).any():
        assert table is not None
        unknown = sorted(set(np.unique(stored).tolist()) - {*table.ids, table.ignore})
        raise DataError(
            f"{what} {unknown[0]}",
            f"an id of the label table {table.name!r} ({len(table.ids)} classes)",
            "Write the data set again with the right label table",
        )
    return classes


def padded_boxes(boxes: Sequence[PlacedBoxes | None], keep_area: float) -> tuple[Tensor, Tensor]:
    """Returns boxes float32 [I, K, 4] and classes int64 [I, K] of a micro-batch, padded with 0 and -1.

    A box of which the crop left nothing, or less than `keep_area` of its area, gets the class -1.
    """
    most = max(1, *(len(entry[1]) if entry else 0 for entry in boxes), 1)
    cxcywh, classes = torch.zeros(len(boxes), most, 4), torch.full((len(boxes), most), -1)
    for number, entry in enumerate(boxes):
        if entry is None:
            continue
        count = len(entry[1])
        kept = (entry[2] > 0) & (entry[2] >= keep_area)
        cxcywh[number, :count] = torch.from_numpy(entry[0])
        classes[number, :count] = torch.from_numpy(np.where(kept, entry[1], -1).astype(np.int64))
    return cxcywh, classes
