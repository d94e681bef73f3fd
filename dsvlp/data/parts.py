"""Parts: the images of one chunk, validated and encoded, on disk while a data set is being written.

`part-000012.bin` holds the values one after another, `part-000012.json` says what they are and
which input they were made from. The JSON comes last and by a rename, so that a part is either
complete or absent, and a part whose input changed is made again. Workers run this file: it imports
neither FFCV nor torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from dsvlp.data import jpeg
from dsvlp.errors import DataError
from dsvlp.types import ImageSource, LabelTable

ABSENT = "absent image"
MAX_BYTES = 256 << 20  # of an image file; a row must fit in one of FFCV's pages


@dataclass(frozen=True)
class Rules:
    """What every image is held against: the pixel limit and the label tables."""

    max_pixels: int
    segmentation: LabelTable | None
    boxes: LabelTable | None


@dataclass(frozen=True)
class Entry:
    """One image of a part.

    Attributes:
        id: the image's id.
        problem, detail: why it is left out; "" where it is kept.
        changes: what was normalised.
        losses: (reason, detail) of annotations that were left out.
        height, width: pixels of the stored image.
        sha256: of the original bytes, hexadecimal.
        spans: (offset, size) in the part's `.bin` of JPEG, boxes, box labels, map.
    """

    id: str
    problem: str = ""
    detail: str = ""
    changes: tuple[str, ...] = ()
    losses: tuple[tuple[str, str], ...] = ()
    height: int = 0
    width: int = 0
    sha256: str = ""
    spans: tuple[tuple[int, int], ...] = ()


def fingerprint(sources: list[ImageSource], rules: Rules) -> str:
    """Returns a hash of a chunk's input: annotations, paths, sizes and times of the files."""
    sha = hashlib.sha256(repr(rules).encode())
    for source in sources:
        stamps = [_stamp(path) for path in (source.path, source.map_path)]
        sha.update(
            repr((source.id, source.path, source.offset, source.size, source.map_path, stamps)).encode()
        )
        for array in (source.boxes_xyxy, source.box_labels, source.map_segments):
            sha.update(b"-" if array is None else array.tobytes())
        sha.update(source.map_png or b"")
    return sha.hexdigest()


def _stamp(path: Path | None) -> tuple[int, int] | None:
    try:
        status = path.stat() if path is not None else None
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if status is not None else None


def make(path: Path, sources: list[ImageSource], rules: Rules) -> Path:
    """Writes the part `path` (without suffix) of these images, unless it stands there already.

    Raises:
        DataError: an annotation names a class that its label table does not have.
        OSError: the disk is full.
    """
    key = fingerprint(sources, rules)
    if _finished(path, key):
        return path
    blob, index = path.with_suffix(".bin"), path.with_suffix(".json")
    index.unlink(missing_ok=True)
    try:
        with blob.open("wb") as file:
            entries = [_store(file, source, rules) for source in sources]
            _sync(file)
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as out:
            json.dump(
                {"key": key, "bytes": blob.stat().st_size, "entries": [asdict(e) for e in entries]}, out
            )
            _sync(out)
        temporary.rename(index)
    except BaseException:
        blob.unlink(missing_ok=True)
        path.with_suffix(".tmp").unlink(missing_ok=True)
        raise
    return path


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _finished(path: Path, key: str) -> bool:
    try:
        value = json.loads(path.with_suffix(".json").read_bytes())
        return value["key"] == key and value["bytes"] == path.with_suffix(".bin").stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return False


def entries(path: Path) -> Iterator[Entry]:
    """Yields the entries of a finished part in order."""
    for value in json.loads(path.with_suffix(".json").read_bytes())["entries"]:
        spans = tuple((offset, size) for offset, size in value.pop("spans"))
        losses = tuple((reason, detail) for reason, detail in value.pop("losses"))
        yield Entry(**{**value, "changes": tuple(value["changes"])}, spans=spans, losses=losses)


def _store(file: BinaryIO, source: ImageSource, rules: Rules) -> Entry:
    """Appends one image's values to the part's file and returns its entry."""
    try:
        data = _read(source)
        sha256 = hashlib.sha256(data).hexdigest()
        image = jpeg.normalise(data, rules.max_pixels)
    except jpeg.BadImage as error:
        return Entry(source.id, error.reason, f"{source.path}: {error.detail}")
    losses: list[tuple[str, str]] = []
    boxes, labels = _boxes(source, image, rules, losses)
    spans = []
    for value in (image.jpeg, boxes.tobytes(), labels.tobytes(), _map(source, image, rules, losses)):
        spans.append((file.tell(), len(value)))
        file.write(value)
    return Entry(
        source.id, "", "", image.changes, tuple(losses), image.height, image.width, sha256, tuple(spans)
    )


def _read(source: ImageSource) -> bytes:
    try:
        if not stat.S_ISREG(source.path.stat().st_mode):  # opening a pipe would wait for ever
            raise jpeg.BadImage("unreadable file", "a folder, a pipe or a device")
        with source.path.open("rb") as file:
            file.seek(source.offset)
            wanted = MAX_BYTES + 1 if source.size is None else min(source.size, MAX_BYTES + 1)
            data = file.read(wanted)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise jpeg.BadImage(ABSENT, "no such file") from error
    except OSError as error:
        raise jpeg.BadImage("unreadable file", error.strerror or str(error)) from error
    if len(data) > MAX_BYTES:
        raise jpeg.BadImage("image file too large", f"more than {MAX_BYTES >> 20} MiB")
    if source.size is not None and len(data) != source.size:
        raise jpeg.BadImage(
            "truncated or corrupt image", f"the archive ends after {len(data)} of {source.size} bytes"
        )
    return data


def _boxes(
    source: ImageSource, image: jpeg.Normalised, rules: Rules, losses: list[tuple[str, str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (float32 [K, 4], int32 [K]); boxes are clipped to the picture, empty ones stay out."""
    if source.boxes_xyxy is None or source.box_labels is None:
        return np.zeros((0, 4), "<f4"), np.zeros(0, "<i4")
    known = rules.boxes.ids if rules.boxes is not None else ()
    for label in np.unique(source.box_labels):
        if int(label) not in known:
            raise DataError(
                f"{source.path}: a box of image {source.id} has class {int(label)}", "an id of the table"
            )
    size = np.array([image.width, image.height] * 2, np.float32)
    boxes = np.clip(source.boxes_xyxy.astype("<f4"), 0, size)
    empty = ~((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    if empty.any():
        losses.append(("empty box", f"{source.id}: {source.boxes_xyxy[empty][0].tolist()}"))
    return boxes[~empty], source.box_labels.astype("<i4")[~empty]


def _map(source: ImageSource, image: jpeg.Normalised, rules: Rules, losses: list[tuple[str, str]]) -> bytes:
    """Returns the PNG of class ids to store, b"" where there is none or it cannot be used."""
    if source.map_path is None and source.map_png is None:
        return b""
    where = str(source.map_path or f"the map of image {source.id}")
    try:
        data = source.map_png if source.map_path is None else source.map_path.read_bytes()
        picture = Image.open(io.BytesIO(data or b""), formats=("PNG",))
        if picture.size != (image.width, image.height):  # judged from the header, before a pixel is decoded
            found = f"{where}: {picture.size}, its image {(image.width, image.height)}"
            losses.append(("map of another size", found))
            return b""
        values = np.asarray(picture)
    except FileNotFoundError:
        losses.append(("absent map", where))
        return b""
    except jpeg.DECODE_ERRORS as error:
        losses.append(("unreadable map", f"{where}: {error}"))
        return b""
    if source.map_segments is not None:
        values = classes_of_segments(values, source.map_segments, where)
        data = _png(values)
    check_map(values, rules.segmentation, where)
    return data or b""


def classes_of_segments(values: np.ndarray, segments: np.ndarray, where: str) -> np.ndarray:
    """Returns the class ids of a panoptic picture.

    Args:
        values: uint8 [H, W, 3]; a segment's number is R + 256 G + 65536 B, 0 is unlabelled.
        segments: int64 [S, 2]: number, class id.
        where: the file, for messages.

    Raises:
        DataError: the picture shows a segment that the annotation does not name.
    """
    if values.ndim != 3 or values.shape[2] != 3:
        raise DataError(f"{where} is a picture of shape {values.shape}", "a panoptic RGB PNG")
    numbers, inverse = np.unique(values.astype(np.int64) @ [1, 256, 65536], return_inverse=True)
    classes = dict(segments.tolist()) | {0: 0}
    unknown = [number for number in numbers.tolist() if number not in classes]
    if unknown:
        raise DataError(f"{where} shows segment {unknown[0]}", "the segments that its json lists")
    return np.array([classes[n] for n in numbers.tolist()])[inverse].reshape(values.shape[:2])


def _png(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(values.astype(np.uint8 if values.max() < 256 else np.uint16)).save(out, "PNG")
    return out.getvalue()


def check_map(values: np.ndarray, table: LabelTable | None, where: str) -> None:
    """Raises `DataError` where a map [H, W] holds an id that its label table does not have."""
    if table is None:
        raise DataError(f"{where} is a map, but its reader has no segmentation table", "a label table")
    if values.ndim != 2:
        raise DataError(f"{where} has {values.shape[2]} channels", "a PNG of class ids: grey or palette")
    known = np.array([*table.ids, *(() if table.ignore is None else (table.ignore,))])
    unknown = np.setdiff1d(np.unique(values), known)
    if len(unknown):
        raise DataError(f"{where} holds class id {int(unknown[0])}", f"an id of the table {table.name}")
