"""Reads region features from LXMERT's tsv files: a line an image, arrays as base64 of raw bytes.

They are scanned once for where each image's line stands, and never held: features of 180,000 images are
120 GB of them. Source: LXMERT, `src/utils.py`, `load_obj_tsv`.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dsvlp.data.features.matching import read_classes, source_of
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
AGAIN = "Make or download the file again"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Line:
    """Where an image's line stands: its file, its number from 1, its first byte."""

    path: Path
    number: int
    offset: int

    def __str__(self) -> str:
        return f"{self.path}: line {self.number}"


def read_tsv(paths: Sequence[Path], dataset: Dataset, classes: Path | None = None) -> RegionSource:
    """Returns the source of tsv files, such as LXMERT's of COCO's two splits.

    Args:
        paths: the files; an image stands in one of them.
        dataset: whose images are looked up in them.
        classes: a text file with the detector's classes, one a line (`objects_vocab.txt`); None: numbers.

    Raises:
        DataError: there is no such file, it is no such tsv, or they have none of the images.
    """
    lines: dict[str, _Line] = {}
    for path in paths:
        size = existing(path, "region features").stat().st_size
        log.info("looking for the images' lines in %s, %.1f GB", path, size / 1e9)
        _index(path, lines)
    numbered = tuple(range(CLASSES))
    table = (
        read_classes(classes, classes.stem)
        if classes is not None
        else LabelTable("visual_genome_1600", numbered, tuple(f"class {id}" for id in numbered))
    )
    where = " and ".join(path.name for path in paths)
    seen = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    return source_of("LXMERT tsv", where, dataset, lines, partial(_read, dataset), table, {"tsv": seen})


def _index(path: Path, lines: dict[str, _Line]) -> None:
    """Adds the lines of a file by their images' ids."""
    offset = 0
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            line = _Line(path, number, offset)
            id = text.partition(b"\t")[0].decode("utf-8", "replace").strip()
            if id in lines:
                raise DataError(
                    f"{line} is of image {id!r}, and so is {lines[id]}",
                    "one line an image",
                    "Leave one of them out",
                )
            if id:
                lines[id] = line
            offset += len(text)
    if not offset:
        raise DataError(f"{path} is empty", "a line an image", AGAIN)


def _read(dataset: Dataset, row: int, line: _Line) -> RegionRows:
    """Returns the regions of an image."""
    record = _fields(line)
    height_width = dataset.sizes(np.array([row]))[0].tolist()
    if record.size != height_width:
        raise DataError(
            f"{line}: image {dataset.image_id(row)!r} is {record.size[1]} x {record.size[0]} "
            f"pixels there, {height_width[1]} x {height_width[0]} in {dataset.path}",
            "features of the stored picture",
            "Write the data set from the pictures that the detector saw",
        )
    return RegionRows(
        np.array([record.count]),
        record.array("features", "<f4", 0),
        record.array("boxes", "<f4", 4),
        record.array("objects_id", "<i8")[:, 0],
        record.array("objects_conf", "<f4")[:, 0],
    )


@dataclass(frozen=True)
class _Record:
    """A line's fields that count: where it stands, [height, width], and arrays by name."""

    where: _Line
    size: list[int]
    count: int
    values: dict[str, bytes]

    def array(self, name: str, dtype: str, columns: int = 1) -> np.ndarray:
        """Returns a field [count, columns]; columns 0: as many as there are."""
        try:
            data = base64.b64decode(self.values[name], validate=True)
        except binascii.Error as error:
            raise DataError(f"{self.where}: {name} is not base64: {error}", fix=AGAIN) from error
        size = np.dtype(dtype).itemsize
        whole = len(data) % (size * self.count) == 0 if self.count else not data
        if not whole or (columns and len(data) != size * self.count * columns):
            raise DataError(
                f"{self.where}: {name} has {len(data)} bytes for {self.count} objects",
                f"{columns or 'equally many'} numbers of {size} bytes an object",
                AGAIN,
            )
        return np.frombuffer(data, dtype).reshape(self.count, -1 if self.count else columns)


def _fields(line: _Line) -> _Record:
    with line.path.open("rb") as file:
        file.seek(line.offset)
        parts = file.readline().rstrip(b"\r\n").split(b"\t")
    if len(parts) != len(FIELDS):
        raise DataError(f"{line} has {len(parts)} fields", f"{len(FIELDS)}: {', '.join(FIELDS)}", AGAIN)
    values = dict(zip(FIELDS, parts, strict=True))
    try:
        height, width, count = (int(values[name]) for name in ("img_h", "img_w", "num_boxes"))
    except ValueError as error:
        raise DataError(f"{line}: {error}", "whole numbers in img_h, img_w and num_boxes", AGAIN) from error
    if count < 0:
        raise DataError(f"{line}: num_boxes is {count}", "0 or more", AGAIN)
    return _Record(line, [height, width], count, values)
