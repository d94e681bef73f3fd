"""Parts: the regions of a few successive rows, on disk while others are made, by any process on any machine.

`.X.features.parts/` holds them as safetensors beside the arguments that they were made with. A part gets its
name when all of it is on the disk: it is complete or absent, so that whoever is killed loses one part, and
the same command goes on with the others. Whoever joins them renames the folder away in one step: to a process
that comes later, a folder that has gone beside features that stand means that all is done.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dsvlp import config
from dsvlp.data.dataset import Dataset
from dsvlp.data.features.rows import RegionRows
from dsvlp.errors import DataError
from dsvlp.types import LabelTable

_ABOUT = "about.json"
_LEAST, _MOST, _WANTED = 16, 256, 64


def spans(dataset: Dataset) -> list[range]:
    """Returns the rows of each part, in order: 64 parts or more, of 16 to 256 rows; of few rows, fewer."""
    rows = min(_MOST, max(_LEAST, dataset.images // _WANTED))
    return [range(first, min(first + rows, dataset.images)) for first in range(0, dataset.images, rows)]


class Parts:
    """The parts of one extraction.

    Args:
        out: the features to be, X.features.
        spans: the rows of each part.

    Attributes:
        folder: where they lie.
    """

    def __init__(self, out: Path, spans: Sequence[range]) -> None:
        self._out, self.folder = out, out.with_name(f".{out.name}.parts")
        self.spans = list(spans)

    def begin(self, arguments: dict[str, Any]) -> None:
        """Makes the folder, or goes on in it.

        Raises:
            DataError: an interrupted extraction had other arguments.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path, mine = self.folder / "arguments.json", json.loads(json.dumps(arguments))
        try:
            before = json.loads(path.read_bytes())
        except FileNotFoundError:
            with suppress(FileNotFoundError):  # another process has joined the parts since `mkdir`
                _write(path, json.dumps(mine).encode())
            return
        if before != mine:
            raise DataError(
                f"an interrupted making of these features had other arguments: "
                f"{'; '.join(config.differences(before, mine))}",
                "the same arguments, so that it goes on",
                f"Repeat that command, or start anew by removing {self.folder}",
            )

    def describe(self, table: LabelTable, width: int) -> None:
        """Notes the classes and the features' width, which all parts share."""
        with suppress(FileNotFoundError):  # another process has joined the parts
            _write(self.folder / _ABOUT, json.dumps({"table": table.to_json(), "width": width}).encode())

    def description(self) -> tuple[LabelTable, int]:
        """Returns what `describe` noted."""
        value = json.loads((self.folder / _ABOUT).read_bytes())
        return LabelTable.from_json(value["table"]), value["width"]

    def missing(self) -> list[int]:
        """Returns the numbers of the parts that are not made yet; none when another process has joined them.

        Raises:
            DataError: the folder has gone, and there are no features.
        """
        with suppress(FileNotFoundError):
            there = set(os.listdir(self.folder))
            if self.folder.is_dir():  # still: nobody has begun to remove what was listed
                return [number for number in range(len(self.spans)) if self._path(number).name not in there]
        if self._out.exists():
            return []
        raise DataError(
            f"{self.folder} was removed while parts were made",
            "the folder, until all parts are joined",
            "Run the same command again: it starts anew",
        )

    def rows_made(self) -> int:
        """Returns the rows of all parts that are made."""
        absent = set(self.missing())
        return sum(len(span) for number, span in enumerate(self.spans) if number not in absent)

    def write(self, number: int, rows: RegionRows) -> None:
        """Writes a part.

        Raises:
            DataError: the disk refuses.
        """
        path = self._path(number)
        aside = path.with_suffix(f".{uuid.uuid4().hex}")
        try:
            save_file({f.name: np.ascontiguousarray(getattr(rows, f.name)) for f in fields(rows)}, aside)
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.rename(path)
        except (OSError, SafetensorError) as error:
            aside.unlink(missing_ok=True)
            raise DataError(
                f"{path} cannot be written: {error}",
                fix="Make room and run the same command again: it goes on",
            ) from error

    def rows_from(self, first: int) -> Iterator[RegionRows]:
        """Yields the regions of row `first` and all later ones.

        Raises:
            DataError: a part is damaged.
        """
        for number, span in enumerate(self.spans):
            if span.stop > first:
                yield _without(self._read(number), max(0, first - span.start))

    @contextmanager
    def joining(self) -> Iterator[bool]:
        """Gives True to one process when all parts are there, False to others; then removes the parts.

        They stay where the joining fails.
        """
        try:
            lock = (self.folder / "lock").open("w")
        except FileNotFoundError:  # another process has joined them
            yield False
            return
        aside = None
        with lock:
            alone = _is_locked(lock) and self.folder.is_dir() and not self.missing()
            yield alone
            if alone:
                aside = self._put_aside()
        if aside is not None:  # only now, with the lock closed: NFS keeps a folder while a file in it is open
            shutil.rmtree(aside, ignore_errors=True)

    def remove(self) -> None:
        """Removes the folder with all parts, if it is there."""
        if (aside := self._put_aside()) is not None:
            shutil.rmtree(aside, ignore_errors=True)

    def _put_aside(self) -> Path | None:
        """Renames the folder, so that nobody finds half of it; None where it has gone."""
        aside = self.folder.with_name(f"{self.folder.name}.{uuid.uuid4().hex}")
        try:
            return self.folder.rename(aside)
        except FileNotFoundError:
            return None

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:08d}.safetensors"

    def _read(self, number: int) -> RegionRows:
        path = self._path(number)
        try:
            return RegionRows(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            raise DataError(
                f"{path} is damaged: {error}", fix="Remove it and run the same command again"
            ) from error


def _is_locked(file: IO[str]) -> bool:
    """Locks a file; returns False where another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise DataError(
            f"{file.name} cannot be locked: {error}",
            "a file system with locks",
            "Choose --out on another one, or have it mounted with locks",
        ) from error
    return True


def _write(path: Path, data: bytes) -> None:
    aside = path.with_suffix(f".{uuid.uuid4().hex}")
    aside.write_bytes(data)
    aside.rename(path)


def _without(rows: RegionRows, count: int) -> RegionRows:
    """Returns the regions without those of the first `count` images."""
    skipped = int(rows.counts[:count].sum())
    columns = {f.name: getattr(rows, f.name)[skipped:] for f in fields(rows) if f.name != "counts"}
    return RegionRows(counts=rows.counts[count:], **columns)
