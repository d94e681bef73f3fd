"""Reads region features from LXMERT's tsv: a line an image, arrays as base64 of raw bytes.

The file is scanned once for where each image's line stands, and never held: features of 180,000 images are
120 GB of it. Source: LXMERT, `src/utils.py`, `load_obj_tsv`.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from dsvlp.data.features.matching import missing_ids, places_of_rows, read_classes
from dsvlp.data.features.rows import RegionRows, RegionSource
from dsvlp.data.readers.base import existing
from dsvlp.errors import DataError
from dsvlp.types import LabelTable

if TYPE_CHECKING:
    from dsvlp.data.dataset import Dataset

FIELDS = (
    "img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes",
    "boxes", "features",
)  # fmt: skip
CLASSES = 1600  # of the bottom-up detector, trained on Visual Genome

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Line:
    """Where an image's line stands: its number from 1, its first byte."""

    number: int
    offset: int


def read_tsv(path: Path, dataset: Dataset, classes: Path | None = None) -> RegionSource:
    """Returns the source of a tsv file.

    Args:
        path: the file.
        dataset: whose images are looked up in it.
        classes: a text file with the detector's classes, one a line (`objects_vocab.txt`); None: numbers.

    Raises:
        DataError: there is no such file, it is no such tsv, or has none of the images.
    """
    path = existing(path, "region features")
    log.info("looking for the images' lines in %s, %.1f GB", path, path.stat().st_size / 1e9)
    lines = _index(path)
    found = places_of_rows(dataset, lines, path)
    table = (
        read_classes(classes, classes.stem)
        if classes is not None
        else LabelTable(
            "visual_genome_1600", tuple(range(CLASSES)), tuple(f"class {id}" for id in range(CLASSES))
        )
    )
    with path.open("rb") as file:
        first = next(line for line in found if line is not None)
        width = _regions(_fields(file, first, path)).features.shape[1]
    status = path.stat()
    return RegionSource(
        name=f"LXMERT tsv {path.name}",
        detector="as in the tsv",
        backbone="as in the tsv",
        width=width,
        table=table,
        rows=lambda first: _rows(path, dataset, found, first, width),
        arguments={"tsv": [str(path), status.st_size, status.st_mtime_ns]},
        missing=missing_ids(dataset, found),
    )


def _index(path: Path) -> dict[str, _Line]:
    """Returns image id -> its line."""
    lines: dict[str, _Line] = {}
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            id = line.partition(b"\t")[0].decode("utf-8", "replace").strip()
            if id in lines:
                raise DataError(
                    f"{path}: line {number} is of image {id!r}, and so is line {lines[id].number}",
                    "one line an image",
                )
            if id:
                lines[id] = _Line(number, offset)
            offset += len(line)
    if not lines:
        raise DataError(f"{path} is empty", "a line an image")
    return lines


def _rows(
    path: Path, dataset: Dataset, found: list[_Line | None], first: int, width: int
) -> Iterator[RegionRows]:
    with path.open("rb") as file:
        for row in range(first, dataset.images):
            line = found[row]
            if line is None:
                yield RegionRows.nothing(width)
                continue
            record = _fields(file, line, path)
            height_width = dataset.sizes(np.array([row]))[0].tolist()
            if record.size != height_width:
                raise DataError(
                    f"{record.where}: image {dataset.image_id(row)!r} is {record.size[1]} x {record.size[0]} "
                    f"pixels there, {height_width[1]} x {height_width[0]} in {dataset.path}",
                    "features of the stored picture",
                    "Write the data set from the pictures that the detector saw",
                )
            yield _regions(record)


@dataclass(frozen=True)
class _Record:
    """A line's fields that count: where it stands, [height, width], and arrays by name."""

    where: str
    size: list[int]
    count: int
    values: dict[str, bytes]

    def array(self, name: str, dtype: str, columns: int = 1) -> np.ndarray:
        """Returns a field [count, columns]; columns 0: as many as there are."""
        try:
            data = base64.b64decode(self.values[name], validate=True)
        except binascii.Error as error:
            raise DataError(f"{self.where}: {name} is not base64: {error}") from error
        size = np.dtype(dtype).itemsize
        whole = len(data) % (size * self.count) == 0 if self.count else not data
        if not whole or (columns and len(data) != size * self.count * columns):
            raise DataError(
                f"{self.where}: {name} has {len(data)} bytes for {self.count} objects",
                f"{columns or 'equally many'} numbers of {size} bytes an object",
            )
        return np.frombuffer(data, dtype).reshape(self.count, -1 if self.count else columns)


def _fields(file: BinaryIO, line: _Line, path: Path) -> _Record:
    where = f"{path}: line {line.number}"
    file.seek(line.offset)
    parts = file.readline().rstrip(b"\r\n").split(b"\t")
    if len(parts) != len(FIELDS):
        raise DataError(f"{where} has {len(parts)} fields", f"{len(FIELDS)}: {', '.join(FIELDS)}")
    values = dict(zip(FIELDS, parts, strict=True))
    try:
        height, width, count = (int(values[name]) for name in ("img_h", "img_w", "num_boxes"))
    except ValueError as error:
        raise DataError(f"{where}: {error}", "whole numbers in img_h, img_w and num_boxes") from error
    if count < 0:
        raise DataError(f"{where}: num_boxes is {count}", "0 or more")
    return _Record(where, [height, width], count, values)


def _regions(record: _Record) -> RegionRows:
    return RegionRows(
        np.array([record.count]),
        record.array("features", "<f4", 0),
        record.array("boxes", "<f4", 4),
        record.array("objects_id", "<i8")[:, 0],
        record.array("objects_conf", "<f4")[:, 0],
    )
