"""Regions as they come, checked value by value and laid out as they are stored.

What is wrong is refused with the image's id, its row and the value: garbage in a feature file would be found
by nobody later. What is harmless is mended and counted: fewer objects than N, boxes a pixel too large.

Legend: R images, K objects of all of them, N objects of a stored row, F feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from dsvlp.data.features.layout import OBJECT, STORED
from dsvlp.data.features.manifest import Kind
from dsvlp.data.features.rows import NO_CLASS, RegionRows
from dsvlp.data.manifest import Tally
from dsvlp.errors import DataError
from dsvlp.types import LabelTable

if TYPE_CHECKING:
    from dsvlp.data.dataset import Dataset

FEWER = "image with fewer objects"
MORE = "image with more objects"
NONE = "image without objects"
CLIPPED = "box clipped at the image's border"

_ROUNDING = 1.0  # pixels that a box may lie outside
_LARGEST = float(np.finfo(np.float16).max)
_NUMBERS = ("numbers", "Make this image's features again")
_FLOAT16 = (f"at most {_LARGEST:g}", "Scale all features down before they are stored")
_SHARE = ("a number from 0 to 1", "Give a probability, not a logit or a percentage")
_CORNERS = "Give left, top, right, bottom in pixels of the stored picture"
_SMALLEST_SCALE = np.float16(2.0**-14)  # the smallest that float16 holds with all its digits


class RowMaker:
    """Makes stored rows of regions.

    Args:
        dataset: whose images they are.
        objects: N.
        width: F.
        dtype: how features are stored.
        table: the label table that labels are ids of, None where objects have no class.
    """

    def __init__(
        self, dataset: Dataset, objects: int, width: int, dtype: Kind, table: LabelTable | None
    ) -> None:
        self._dataset, self._objects, self._width, self._dtype = dataset, objects, width, dtype
        self._classes = {NO_CLASS: NO_CLASS}
        if table is not None:
            ignored = {} if table.ignore is None else {table.ignore: NO_CLASS}
            self._classes = ignored | {id: number for number, id in enumerate(table.ids)}
        self._table = table

    def make(self, first: int, rows: RegionRows, adjusted: Tally) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields features [N, F] and `layout.OBJECT` [N] of each image.

        Args:
            first: the data set's row of the first image.
            rows: the regions.
            adjusted: what was mended is counted here.

        Raises:
            DataError: names the image and the value that cannot be stored.
        """
        self._check_shapes(first, rows)
        images = first + np.repeat(np.arange(len(rows.counts)), rows.counts)  # [K]
        self._check_values(images, rows)
        about = np.zeros(len(images), OBJECT)
        about["box"] = self._boxes(images, rows.boxes_xyxy, adjusted)
        about["label"] = self._labels(images, rows.labels)
        about["confidence"], about["is_object"] = rows.confidences, 1
        ends = np.cumsum(rows.counts)
        for number, end in enumerate(ends.tolist()):
            part = slice(end - int(rows.counts[number]), end)
            yield self._row(first + number, rows.features[part], about[part], adjusted)

    def _row(
        self, row: int, features: np.ndarray, about: np.ndarray, adjusted: Tally
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns one image's N objects: the most confident, in the order in which they came."""
        count = len(features)
        if count != self._objects:
            reason = NONE if not count else FEWER if count < self._objects else MORE
            adjusted.add(reason, f"{self._dataset.image_id(row)}: {count}")
        chosen = np.sort(np.argsort(-about["confidence"], kind="stable")[: self._objects])
        out = np.zeros((self._objects, self._width), STORED[self._dtype])
        told = np.zeros(self._objects, OBJECT)
        told["label"] = NO_CLASS
        told[: len(chosen)] = about[chosen]
        if self._dtype == "float16":
            out[: len(chosen)] = features[chosen]
        else:
            out[: len(chosen)], told["scale"][: len(chosen)] = quantised(features[chosen])
        return out, told

    def _check_shapes(self, first: int, rows: RegionRows) -> None:
        count = int(rows.counts.sum())
        where = f"images from row {first} on ({self._dataset.image_id(first)!r})"
        if rows.features.ndim != 2 or rows.features.shape[1] != self._width:
            raise DataError(
                f"{where} have features of the shape {rows.features.shape}",
                f"a width of {self._width}",
                "One folder holds features of one width: make them all with one backbone",
            )
        found = {
            "features": len(rows.features),
            "boxes": len(rows.boxes_xyxy),
            "labels": len(rows.labels),
            "confidences": len(rows.confidences),
        }
        wrong = {name: length for name, length in found.items() if length != count}
        if wrong or rows.boxes_xyxy.shape[1:] != (4,):
            told = ", ".join(f"{length} {name}" for name, length in wrong.items())
            raise DataError(
                f"{where} have {told or f'boxes of {rows.boxes_xyxy.shape[1:]} numbers'} for {count} objects",
                "one of each for every object, and four numbers a box",
                "Make them again",
            )

    def _check_values(self, images: np.ndarray, rows: RegionRows) -> None:
        finite = np.isfinite(rows.features)
        self._refuse(images, (~finite).any(1), rows.features, "a feature that is no finite number", _NUMBERS)
        large = np.abs(rows.features) > _LARGEST
        self._refuse(images, large.any(1), rows.features, "a feature too large for float16", _FLOAT16)
        confidences = rows.confidences
        inside: np.ndarray = (confidences >= 0) & (confidences <= 1)
        self._refuse(images, ~inside, confidences, "a confidence", _SHARE)

    def _boxes(self, images: np.ndarray, boxes: np.ndarray, adjusted: Tally) -> np.ndarray:
        """Returns float32 [K, 4], shares of the image."""
        sizes = self._dataset.sizes(images)[:, [1, 0, 1, 0]].astype(np.float32)  # [K, 4]: W, H, W, H
        self._refuse(images, (~np.isfinite(boxes)).any(1), boxes, "a box", ("four finite numbers", _CORNERS))
        outside = np.any((boxes < -_ROUNDING) | (boxes > sizes + _ROUNDING), axis=1)
        picture = "a box inside the picture of {w:g} x {h:g} pixels"
        self._refuse(images, outside, boxes, "a box", (picture, _CORNERS), sizes)
        inside = np.clip(boxes, 0, sizes)
        empty = np.any(inside[:, 2:] <= inside[:, :2], axis=1)
        ordered = "left < right and top < bottom"
        self._refuse(images, empty, boxes, "a box without area", (ordered, _CORNERS))
        for number in np.flatnonzero((inside != boxes).any(1)).tolist():
            adjusted.add(CLIPPED, f"{self._dataset.image_id(int(images[number]))}: {boxes[number].tolist()}")
        shares: np.ndarray = inside / sizes
        return shares

    def _labels(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Returns int64 [K], contiguous classes."""
        known = np.isin(labels, list(self._classes))
        table = (
            f"an id of the label table {self._table.name!r}" if self._table else "-1: there is no label table"
        )
        self._refuse(
            images, ~known, labels, "the class", (table, "Name every class in the file of --classes")
        )
        return np.array([self._classes[label] for label in labels.tolist()], np.int64)

    def _refuse(
        self,
        images: np.ndarray,
        wrong: np.ndarray,
        values: np.ndarray,
        what: str,
        remedy: tuple[str, str],
        sizes: np.ndarray | None = None,
    ) -> None:
        """Raises `DataError` for the first object that is wrong, if any; `remedy`: what is right, a fix."""
        if not wrong.any():
            return
        number = int(np.flatnonzero(wrong)[0])
        row, value = int(images[number]), np.atleast_1d(values[number])
        if len(value) > 4:  # a feature: the worst of its numbers
            value = value[np.argsort(np.where(np.isfinite(value), np.abs(value), np.inf))[-1:]]
        told = ", ".join(f"{float(part):g}" for part in value)
        expected, fix = remedy
        if sizes is not None:
            expected = expected.format(w=sizes[number, 0], h=sizes[number, 1])
        ordinal = int((images[:number] == row).sum())
        raise DataError(
            f"image {self._dataset.image_id(row)!r} (row {row}): object {ordinal} has {what}: {told}",
            expected,
            fix,
        )


def quantised(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns features [K, F] as int8, and what each object's must be multiplied by, float32 [K]."""
    largest = np.abs(features).max(1, initial=0).astype(np.float32)
    scale = np.maximum((largest / 127).astype(np.float16), _SMALLEST_SCALE).astype(np.float32)
    steps = np.rint(features.astype(np.float32) / scale[:, None])
    return np.clip(steps, -127, 127).astype(np.int8), scale
