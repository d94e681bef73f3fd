"""Where a data set or its features stand while they are written: `.X.beton.partial`, locked, taken up again.

`.X.beton.partial/` holds the files to be, and `work/` what is needed on the way: the arguments, the
lock, the parts. The manifest is written last; the folder is then renamed to `X.beton`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from dsvlp import config
from dsvlp.data import manifest as manifests
from dsvlp.errors import DataError


class Workplace:
    """A context manager that holds the folder's lock.

    Attributes:
        folder: where the data set's files go.
        work: for what is removed at the end.

    Raises:
        DataError: `out` is there and `force` is not set, another process writes it, or an
            interrupted writing had other arguments.
    """

    def __init__(self, out: Path, arguments: dict[str, Any], force: bool, suffix: str = ".beton") -> None:
        if out.suffix != suffix:
            raise DataError(f"--out {out}", f"a name that ends in {suffix}", f"Use {out}{suffix}")
        self.out, self.folder = out, out.with_name(f".{out.name}.partial")
        self.work = self.folder / "work"
        self._old = out.with_name(f".{out.name}.old")
        self._arguments, self._force = json.loads(json.dumps(arguments)), force
        self._lock: IO[str] | None = None

    @property
    def complete(self) -> bool:
        """True where an earlier process had written everything but the name."""
        return (self.folder / manifests.NAME).is_file()

    def __enter__(self) -> "Workplace":
        if self._old.exists() and not self.out.exists():  # killed between the two renames of `publish`
            self._old.rename(self.out)
        if self.out.exists() and not self._force:
            raise DataError(
                f"{self.out} exists", "a new name", "Choose another --out, or replace it with --force"
            )
        self.work.mkdir(parents=True, exist_ok=True)
        self._lock = (self.work / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise DataError(
                f"another process is writing {self.out}", "one writer", "Wait until it is done"
            ) from error
        try:
            self._compare_arguments()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()

    def _compare_arguments(self) -> None:
        path = self.work / "arguments.json"
        try:
            before = json.loads(path.read_bytes())
        except FileNotFoundError:
            before = None
        except ValueError:  # killed while it was written: nothing had been made yet
            before = None
        if before is None:
            path.write_text(json.dumps(self._arguments))
        elif before != self._arguments:
            changed = "; ".join(config.differences(before, self._arguments))
            raise DataError(
                f"an interrupted writing of {self.out} had other arguments: {changed}",
                "the same arguments, so that it goes on",
                f"Repeat that command, or start anew by removing {self.folder}",
            )

    def publish(self) -> None:
        """Gives the finished folder its name; an old data set stays until the new one stands."""
        _sync_folder(self.folder)
        if self.out.exists():
            shutil.rmtree(self._old, ignore_errors=True)
            self.out.rename(self._old)
        self.folder.rename(self.out)
        _sync_folder(self.out.parent)
        if self._lock is not None:
            self._lock.close()  # NFS keeps a folder while a file in it is open
        shutil.rmtree(self.out / "work")
        shutil.rmtree(self._old, ignore_errors=True)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
