"""Checks a whole data set, counts what it holds, and finds the images that two data sets share."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dsvlp.data import jpeg, parts
from dsvlp.data.dataset import Dataset
from dsvlp.data.shard import check_shard
from dsvlp.data.tables import TASKS
from dsvlp.errors import DataError


@dataclass(frozen=True)
class StoredValues:
    """The values of one row as they are stored.

    Attributes:
        row: number in the data set.
        jpeg: the picture's bytes.
        height, width: pixels.
        boxes_xyxy: float32 [K, 4] in pixels.
        box_labels: int32 [K], ids of the boxes' label table.
        map_png: a PNG of ids of the maps' label table, b"" where there is none.
    """

    row: int
    jpeg: bytes
    height: int
    width: int
    boxes_xyxy: np.ndarray
    box_labels: np.ndarray
    map_png: bytes


@dataclass(frozen=True)
class Statistics:
    """What a data set holds; pixels and bytes as (smallest, mean, largest)."""

    images: int
    texts: int
    tasks: dict[str, int]
    texts_per_image: tuple[float, float, float]
    words_per_text: tuple[float, float, float]
    width: tuple[float, float, float]
    height: tuple[float, float, float]
    jpeg_bytes: tuple[float, float, float]
    boxes_per_image: tuple[float, float, float]
    maps: int
    boxes_of_class: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Shared:
    """Images of one data set that are also in another, by id and by the hash of their original bytes."""

    by_id: list[str]
    by_hash: list[tuple[str, str]]


def rows(dataset: Dataset, wanted: np.ndarray | None = None) -> Iterator[StoredValues]:
    """Yields rows straight from the shards, all or the `wanted` ones: for checks, not for training."""
    numbers = np.arange(dataset.images) if wanted is None else np.asarray(wanted)
    shards, local = dataset.locate(numbers)
    current = -1
    metadata: Any = None
    data: Any = None
    for number, shard, row in zip(numbers, shards, local, strict=True):
        if shard != current:
            current = int(shard)
            metadata = check_shard(dataset.shards[current].path, dataset.shards[current].rows)
            data = np.memmap(dataset.shards[current].path, np.uint8, "r")
        entries = [metadata[name][row] for name in metadata.dtype.names]
        values = [data[int(e["ptr"]) : int(e["ptr"]) + int(e["size"])].tobytes() for e in entries]
        image, boxes, labels, png = values
        yield StoredValues(
            int(number),
            image,
            int(entries[0]["height"]),
            int(entries[0]["width"]),
            np.frombuffer(boxes, "<f4").reshape(-1, 4),
            np.frombuffer(labels, "<i4"),
            png,
        )


def check(path: Path | str) -> Statistics:
    """Verifies everything that can be verified of a data set and returns its statistics.

    Hashes, tables, pointers; every picture is decoded, every box and map held against its table.

    Raises:
        DataError: names the file, the block, the row or the class that is wrong.
    """
    dataset = Dataset.open(path, verify="full")
    sizes: list[tuple[int, ...]] = []
    counts: dict[int, int] = {}
    for stored in rows(dataset):
        _check_row(dataset, stored)
        sizes.append((stored.width, stored.height, len(stored.jpeg), len(stored.boxes_xyxy)))
        for label in stored.box_labels.tolist():
            counts[label] = counts.get(label, 0) + 1
    words = [len(dataset.text(i).split()) for i in range(dataset.manifest.texts)]
    columns = np.array(sizes).reshape(-1, 4).T
    tasks = np.bincount(dataset.samples["task"], minlength=len(TASKS))
    names = dict(zip(dataset.boxes.ids, dataset.boxes.names, strict=True)) if dataset.boxes else {}
    return Statistics(
        images=dataset.images,
        texts=dataset.manifest.texts,
        tasks={task: int(count) for task, count in zip(TASKS, tasks, strict=True) if count},
        texts_per_image=_spread(np.diff(dataset.first_sample)),
        words_per_text=_spread(np.array(words)),
        width=_spread(columns[0]),
        height=_spread(columns[1]),
        jpeg_bytes=_spread(columns[2]),
        boxes_per_image=_spread(columns[3]),
        maps=dataset.manifest.maps,
        boxes_of_class={names[k]: counts[k] for k in sorted(counts, key=lambda k: -counts[k])},
    )


def _spread(values: np.ndarray) -> tuple[float, float, float]:
    if not len(values):
        return (0.0, 0.0, 0.0)
    return (float(values.min()), float(values.mean()), float(values.max()))


def _check_row(dataset: Dataset, stored: StoredValues) -> None:
    where = f"{dataset.path}: row {stored.row} ({dataset.image_id(stored.row)})"
    try:
        image = jpeg.normalise(stored.jpeg, max_pixels=2**40)
    except jpeg.BadImage as error:
        raise DataError(f"{where}: {error.reason}: {error.detail}", "a JPEG that decodes") from error
    if image.changes or (image.height, image.width) != (stored.height, stored.width):
        found = f"{image.width}x{image.height} {', '.join(image.changes)}"
        raise DataError(f"{where}: {found}", f"a baseline JPEG of {stored.width}x{stored.height}")
    if len(stored.boxes_xyxy) != len(stored.box_labels):
        raise DataError(f"{where}: {len(stored.boxes_xyxy)} boxes, {len(stored.box_labels)} labels")
    known = dataset.boxes.ids if dataset.boxes else ()
    if len(np.setdiff1d(stored.box_labels, known)):
        raise DataError(f"{where}: box classes {stored.box_labels.tolist()}", "ids of the boxes' table")
    if stored.map_png:
        values = np.asarray(Image.open(io.BytesIO(stored.map_png), formats=("PNG",)))
        parts.check_map(values, dataset.segmentation, where)
        if values.shape != (stored.height, stored.width):
            raise DataError(f"{where}: a map of {values.shape}", f"{(stored.height, stored.width)}")


def shared_images(dataset: Dataset, other: Dataset) -> Shared:
    """Returns the images of `dataset` that `other` also has: no test image belongs in pre-training.

    Ids are compared as they stand: they find the same picture in two editions of one source. Hashes are
    of the original bytes: they find copies under another name.
    """
    others = {_short(other.image_id(row)) for row in range(other.images)}
    by_id = [id for id in map(dataset.image_id, range(dataset.images)) if _short(id) in others]
    where = {other.hashes[row].tobytes(): row for row in range(other.images)}
    by_hash = [
        (dataset.image_id(row), other.image_id(where[digest]))
        for row in range(dataset.images)
        if (digest := dataset.hashes[row].tobytes()) in where
    ]
    return Shared(by_id, by_hash)


def _short(id: str) -> bytes:
    """Returns 16 bytes for an id, so that sets of many ids stay small."""
    return hashlib.blake2b(id.encode(), digest_size=16).digest()
