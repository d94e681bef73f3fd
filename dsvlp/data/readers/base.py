"""What every reader gives the writer, and how raw files are read with errors that name their place.

A reader is a function `read(...) -> Reader`; it checks that its files exist, and yields samples lazily.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

from dsvlp.data.manifest import Tally
from dsvlp.errors import DataError
from dsvlp.types import LabelTable, Sample

T = TypeVar("T")

OTHER_FILE = "Check that it is the file that the option asks for, or download it again"

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Tables:
    """The label tables of a source's maps and boxes, and its own answer table; None where it has none."""

    segmentation: LabelTable | None = None
    boxes: LabelTable | None = None
    answers: LabelTable | None = None


@dataclass(frozen=True)
class Reader:
    """A source of samples.

    Attributes:
        name: the reader's name ("coco").
        source: what it reads, for people and the manifest.
        samples: returns an iterator over the samples, the same ones in the same order each time. An
            image is known by its `id`: all samples that name one id must give the same `ImageSource`.
        tables: label tables of maps, boxes and answers.
        arguments: everything that decides what `samples` yields, as JSON: an interrupted writing
            goes on only with equal arguments.
        images: number of images where it is known beforehand, for the progress bar.
        skipped: what the reader itself leaves out, by reason; filled while `samples` runs.
    """

    name: str
    source: str
    samples: Callable[[], Iterator[Sample]]
    tables: Tables = Tables()
    arguments: dict[str, Any] = field(default_factory=dict)
    images: int | None = None
    skipped: Tally = field(default_factory=Tally)


def inside(folder: Path, name: str, where: str) -> Path:
    """Returns `folder / name`.

    Raises:
        DataError: the name is empty or none that a file can have, or it leaves the folder: absolute, by
            `..`, or through a symbolic link.
    """
    path = folder / name
    parts = PurePosixPath(name.replace("\\", "/"))
    leaves = parts.is_absolute() or ".." in parts.parts or "\0" in name or not name
    if not leaves:
        try:
            leaves = not path.resolve().is_relative_to(folder.resolve())
        except (OSError, RuntimeError, UnicodeEncodeError):  # a link to itself, half a surrogate pair
            leaves = True
    if leaves:
        raise DataError(
            f"{where}: the file name {name!r} is empty, no name, or leaves {folder}",
            "a path inside it",
            "Correct it there, or leave it out",
        )
    return path


def existing(path: Path | str, what: str, folder: bool = False) -> Path:
    """Returns `path` as a Path; raises `DataError` where no such file (or folder) is."""
    path = Path(path)
    if not (path.is_dir() if folder else path.is_file()):
        kind = "folder" if folder else "file"
        raise DataError(f"there is no {kind} {path}", f"the {kind} of {what}", "Check the path")
    return path


def decode(data: bytes) -> str:
    """Returns the text of bytes; what is not UTF-8 becomes lone surrogates, which the writer counts."""
    return data.decode("utf-8-sig", "surrogateescape")


def load_json(path: Path) -> dict[str, Any]:
    """Returns the object that a JSON file holds; raises `DataError` naming file and line."""
    value = parse_json(path.read_bytes(), str(path))
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}", "a JSON object", OTHER_FILE)
    return value


def parse_json(data: bytes, where: str) -> Any:
    """Returns a JSON value; raises `DataError` naming its place."""
    try:
        return json.loads(decode(data))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}", fix="Download the file again") from error


def get(record: Any, key: str, kind: type[T] | tuple[type[T], ...], where: str) -> T:
    """Returns `record[key]`.

    Args:
        record: a JSON object.
        key: the key.
        kind: the type or types that the value may have; a whole number passes as a float, a
            boolean never passes as a number.
        where: file and record number.

    Raises:
        DataError: the record is no object, or the key is missing, or its value has another type.
    """
    if not isinstance(record, dict):
        raise DataError(
            f"{where} is a {type(record).__name__}: {str(record)[:80]!r}", "a JSON object", OTHER_FILE
        )
    if key not in record:
        raise DataError(
            f"{where} has no key {key!r}",
            f"the keys of its format; it has {sorted(record)[:12]}",
            OTHER_FILE,
        )
    value: Any = record[key]
    kinds: tuple[type, ...] = kind if isinstance(kind, tuple) else (kind,)
    if float in kinds:
        kinds = (*kinds, int)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(k.__name__ for k in kinds)
        raise DataError(
            f"{where}: {key} = {str(value)[:80]!r} is a {type(value).__name__}", names, OTHER_FILE
        )
    return cast(T, value)


def records(table: dict[str, Any], key: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (place, record) of a list in a JSON file; the place names file, list and number."""
    for number, record in enumerate(get(table, key, list, str(path))):
        yield f"{path}: {key}[{number}]", record
