"""The manifest of a `.beton` data set: what it holds, where it came from, the hashes of its files.

`manifest.json` carries the SHA-256 of itself and, for every other file, its size and the SHA-256 of
each block of 64 MiB, so that damage is found before use and named by file and block.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dsvlp.errors import DataError
from dsvlp.types import LabelTable

FORMAT = 1
BLOCK = 64 << 20
NAME = "manifest.json"
EXAMPLES = 20
AGAIN = "Write the data set again"


@dataclass
class Tally:
    """Counts by reason, with the first examples of each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Counts one more `example` of `reason`."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        names = self.examples.setdefault(reason, [])
        if len(names) < EXAMPLES:
            names.append(example)

    def update(self, other: "Tally") -> None:
        """Adds another tally's counts and examples to this one."""
        for reason, count in other.counts.items():
            for example in other.examples[reason]:
                self.add(reason, example)
            self.counts[reason] += count - len(other.examples[reason])

    def lines(self) -> list[str]:
        """Returns one line for each reason, for people, the most frequent first."""
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return [f"{count} {reason} (e.g. {self.examples[reason][0]})" for reason, count in ordered]


@dataclass(frozen=True)
class FileRecord:
    """One file: its size and the SHA-256 of its 64 MiB blocks."""

    bytes: int
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """What stands in `manifest.json`.

    Attributes:
        format: number of the on-disk format.
        reader: the reader's name.
        source: what it read, for people.
        images, samples, texts: counts.
        shard_rows: rows of each shard, in order.
        row_fields: names of a row's FFCV fields, in order.
        maps, boxes_images: images that have a segmentation map, boxes.
        tables: names of optional tables that are present ("answers", "phrases").
        segmentation, boxes: the label tables of maps and boxes.
        normalised, skipped: what was re-encoded and what was left out, by reason.
        files: every other file, by name.
        outside: what has no place in the answer table, by reason: no damage, and not left out.
    """

    reader: str
    source: str
    images: int
    samples: int
    texts: int
    shard_rows: tuple[int, ...]
    row_fields: tuple[str, ...]
    maps: int
    boxes_images: int
    tables: tuple[str, ...]
    segmentation: LabelTable | None
    boxes: LabelTable | None
    normalised: Tally
    skipped: Tally
    files: dict[str, FileRecord]
    outside: Tally = field(default_factory=Tally)
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Returns the manifest as JSON, its own digest included."""
        value = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("segmentation", "boxes"):
            value[name] = value[name].to_json() if value[name] is not None else None
        for name in ("normalised", "skipped", "outside"):
            value[name] = asdict(value[name])
        if not self.outside.counts:  # as in data sets written before it was counted, whose digest stays
            del value["outside"]
        value["files"] = {name: asdict(record) for name, record in sorted(self.files.items())}
        value = json.loads(json.dumps(value))  # tuples become lists, as they will when read back
        return {**value, "digest": digest(value)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Manifest":
        """Returns the manifest that `to_json` wrote; raises KeyError or TypeError on another shape."""
        value = {key: item for key, item in value.items() if key != "digest"}
        for name in ("segmentation", "boxes"):
            value[name] = LabelTable.from_json(value[name]) if value[name] is not None else None
        for name in ("normalised", "skipped", "outside"):
            value[name] = Tally(**value.get(name, {}))
        for name in ("shard_rows", "row_fields", "tables"):
            value[name] = tuple(value[name])
        value["files"] = {
            name: FileRecord(record["bytes"], tuple(record["blocks"]))
            for name, record in value["files"].items()
        }
        return cls(**value)

    def save(self, folder: Path) -> None:
        """Writes `manifest.json`, whole or not at all, and waits until it is on the disk."""
        save(folder, self.to_json())


def save(folder: Path, value: dict[str, Any]) -> None:
    """Writes a manifest with its digest, whole or not at all, and waits until it is on the disk."""
    partial = folder / f"{NAME}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(folder / NAME)


def digest(value: dict[str, Any]) -> str:
    """Returns the SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def load(folder: Path) -> Manifest:
    """Returns a data set's manifest.

    Raises:
        DataError: it is absent, damaged, or of another format.
    """
    value = read(folder, FORMAT, "a data set written by `dsvlp data write`")
    try:
        return Manifest.from_json(value)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / NAME} is damaged: {error!r}", fix=AGAIN) from error


def read(folder: Path, format: int | str, what: str) -> dict[str, Any]:
    """Returns what stands in the manifest of a folder, its digest checked.

    Args:
        folder: holds `manifest.json`.
        format: the format that it must have.
        what: what the folder should be, for messages.

    Raises:
        DataError: it is absent, damaged, or of another format.
    """
    path = folder / NAME
    if not path.is_file():
        raise DataError(f"{folder} has no {NAME}", what, "Check the path")
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}", fix=AGAIN) from error
    if not isinstance(value, dict) or "digest" not in value:
        raise DataError(f"{path} is damaged: it has no digest", fix=AGAIN)
    if value.get("format") != format:
        raise DataError(f"{path} has format {value.get('format')!r}", f"format {format!r}: {what}", AGAIN)
    if digest({key: item for key, item in value.items() if key != "digest"}) != value["digest"]:
        raise DataError(f"{path} is damaged: its digest does not fit its content", fix=AGAIN)
    return value


def record(path: Path) -> FileRecord:
    """Returns a file's size and block hashes."""
    return FileRecord(path.stat().st_size, tuple(_block_hashes(path)))


def check_size(path: Path, expected: FileRecord) -> None:
    """Raises `DataError` where a file is absent or of another size."""
    if not path.is_file():
        raise DataError(f"{path} is absent", "every file that the manifest names", "Copy the data set again")
    size = path.stat().st_size
    if size != expected.bytes:
        raise DataError(f"{path} has {size} bytes", f"{expected.bytes}", "Copy or write the data set again")


def check_blocks(path: Path, expected: FileRecord) -> None:
    """Raises `DataError` that names the first damaged block of a file."""
    check_size(path, expected)
    for number, (found, right) in enumerate(zip(_block_hashes(path), expected.blocks, strict=True)):
        if found != right:
            raise DataError(
                f"{path}: block {number} of 64 MiB is damaged: SHA-256 {found[:12]}...",
                f"{right[:12]}...",
                "Copy or write the data set again",
            )


def _block_hashes(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        while True:
            sha, left = hashlib.sha256(), BLOCK
            while left and (data := file.read(min(left, 1 << 20))):
                sha.update(data)
                left -= len(data)
            if left == BLOCK:
                return
            yield sha.hexdigest()
