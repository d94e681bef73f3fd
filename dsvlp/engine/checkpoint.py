"""Checkpoints: one format for everything, by parameter name, whatever the world size and ZeRO stage.

    checkpoints/
      LATEST                       name of the newest one, for people and scripts
      step-00001200/
        rank-00000-of-00008.safetensors ...   1-d pieces, each keyed `name | state | start`
        state.json                 counters, loader position, clock, facts of the data, resolved recipe
        manifest.json              a checksum line, then sizes and SHA-256 of the files, the map of pieces
      .step-00001400.1f2e3d4c-7/   being written, or torn: does not exist for the reader

`state` is "weight" (fp32 master, frozen parameters too; a tied parameter under its first name only),
"buffer", or a moment of the optimizer. **Every other tensor of state** goes the same way: FIBER's and
ALBEF-like queues, their write positions and Pixel-BERT's pending negatives are persistent buffers of the
module that owns them; BatchNorm's statistics are buffers, averaged over ranks first; an exponential
moving average (FIBER, 0.999) and GOLD's frozen copy are frozen parameters. What is derived (position
tables) is a non-persistent buffer and is not stored. Dropout is re-seeded at each micro-step, so there
is no state of a random generator. No pickle is written or read.

**Writing.** Each rank copies its fragments to the host (the stall), then a thread writes, syncs and
re-reads its shard; the verdicts of all ranks are gathered over a group of their own with a time limit;
rank 0 writes state and manifest, syncs, renames (the commit), syncs the folder above, replaces LATEST
and only then deletes older ones. A full disk leaves the old ones and the run: `Saved.problem` says so.

**Reading.** Rank 0 lists, all ranks hash a share of the files, and all take the newest checkpoint on
which every verdict is good; a bad one is named in the log.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dsvlp import dist
from dsvlp.engine.fragments import BUFFER, WEIGHT, Fragment
from dsvlp.engine.shards import (
    FORMAT,
    MANIFEST,
    STATE,
    CheckpointReader,
    Manifest,
    hash_file,
    piece_list,
    problem_of,
    read_manifest,
    sync_folder,
    tensor_entries,
    write_file,
    write_manifest,
    write_shard,
)
from dsvlp.errors import CheckpointError, RunError

log = logging.getLogger(__name__)

LATEST = "LATEST"
_NAME = re.compile(r"step-(\d{8,12})(?:\.(\d{1,6}))?")
_MAX_FAILURES = 5  # saves in a row that the disk may refuse


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        step: optimizer steps done.
        path: its folder.
        state: the JSON state, also `reader.state`.
        reader: its tensors.
    """

    step: int
    path: Path
    state: dict[str, Any]
    reader: CheckpointReader


@dataclass(frozen=True)
class Saved:
    """What became of a save, the same on all ranks.

    Attributes:
        step: the step saved.
        path: the committed folder, None where it failed.
        problem: why the disk refused, None where it did not.
        seconds: from the host copy's end to the commit.
    """

    step: int
    path: Path | None
    problem: str | None
    seconds: float


class CheckpointStore:
    """The checkpoints of one run. One writer at a time: the run's lease sees to that.

    Every method but `latest` must be called by every rank.

    Args:
        folder: the run's `checkpoints` folder.
        keep: newest checkpoints that stay, at least 1.
        patience_seconds: how long a save waits for a rank that does not report.
    """

    def __init__(self, folder: Path, keep: int = 2, patience_seconds: float = 1800.0) -> None:
        self.folder = folder
        self.copy_seconds = 0.0
        self._keep = max(1, keep)
        self._group = dist.side_group(patience_seconds)
        self._token = dist.broadcast_object(secrets.token_hex(4))
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Saved] | None = None
        self._saves = self._failures = 0
        self._bad: set[str] = set()

    def save(
        self,
        step: int,
        fragments: Sequence[Fragment],
        state: dict[str, Any],
        *,
        background: bool = True,
        protect: Collection[int] = (),
    ) -> Saved | None:
        """Copies the fragments to the host and writes them; waits for the previous save first.

        Args:
            step: optimizer steps done.
            fragments: this rank's share of the state.
            state: JSON; rank 0's is written.
            background: return after the copy; False waits for the commit.
            protect: steps that retention leaves alone (the best by validation).

        Returns:
            The outcome: of the previous save in the background, of this one otherwise.

        Raises:
            RunError: the disk has refused several saves in a row.
        """
        previous = self.wait()
        began = time.monotonic()
        copies = [replace(f, tensor=f.tensor.detach().to("cpu", copy=True).contiguous()) for f in fragments]
        self.copy_seconds = time.monotonic() - began
        self._saves += 1
        hidden = self.folder / f".step-{step:08d}.{self._token}-{self._saves}"
        text = json.dumps(state, allow_nan=False)
        self._pending = self._writer.submit(self._write, step, hidden, copies, text, frozenset(protect))
        return previous if background else self.wait()

    def wait(self) -> Saved | None:
        """Returns the outcome of the save in flight after it ended, None where there is none.

        Raises:
            RunError: the disk has refused several saves in a row; any other error of the thread as it is.
        """
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        saved = pending.result()
        if saved.problem is None:
            self._failures = 0
            return saved
        self._failures += 1
        log.warning("checkpoint of step %d was not written: %s; older ones stay", saved.step, saved.problem)
        if self._failures >= _MAX_FAILURES:
            raise RunError(
                f"{self._failures} checkpoints in a row could not be written: {saved.problem}",
                f"a writable disk under {self.folder}",
                "Free space and resume; nothing older was deleted",
            )
        return saved

    def close(self) -> None:
        """Waits for the save in flight and ends the thread."""
        self.wait()
        self._writer.shutdown()

    def latest(self) -> Path | None:
        """Returns the newest complete checkpoint's folder, unverified; None where there is none."""
        names = self._complete()
        return self.folder / names[0] if names else None

    def load(self) -> Checkpoint | None:
        """Returns the newest checkpoint that verifies on every rank, None where there has been none.

        Raises:
            CheckpointError: there are checkpoints, and every one of them is damaged.
        """
        self._check_latest()
        names = dist.broadcast_object(self._complete())
        problems: list[str] = []
        for name in names:
            manifest, problem = _verify(self.folder / name)
            found = [p for p in dist.gather_objects(problem) if p is not None]
            if manifest is not None and not found:
                return _open(self.folder / name, manifest)
            self._bad.add(name)
            problems += found
            if dist.rank() == 0:
                log.warning(
                    "checkpoint %s is damaged and passed over: %s", name, "; ".join(sorted(set(found)))
                )
        if not names:
            return None
        raise CheckpointError(
            f"no checkpoint in {self.folder} verifies: {'; '.join(sorted(set(problems)))}",
            "at least one whole checkpoint",
            "Restore the folder from a backup, or start a new run",
        )

    def _check_latest(self) -> None:
        pointer = self.folder / LATEST
        if dist.rank() == 0 and pointer.is_file():
            name = pointer.read_bytes()[:64].decode("ascii", "replace").strip()
            if not _NAME.fullmatch(name):
                log.warning("%s is damaged (%r); the folder's listing is used", pointer, name)
            elif not (self.folder / name / MANIFEST).is_file():
                log.warning(
                    "%s names %s, which is not there; the newest that is there is used", pointer, name
                )

    def _complete(self) -> list[str]:
        """Returns the names of the folders that have a manifest, newest first."""
        if not self.folder.is_dir():
            return []
        found = [path.name for path in self.folder.iterdir() if (path / MANIFEST).is_file()]
        return sorted(filter(_NAME.fullmatch, found), key=_order, reverse=True)

    # What follows runs in the writer's thread, except in tests.

    def _write(
        self, step: int, hidden: Path, fragments: list[Fragment], state: str, protect: frozenset[int]
    ) -> Saved:
        began = time.monotonic()
        verdict = _write_own(hidden, fragments)
        verdicts = dist.gather_objects(verdict, self._group)
        problem = next((v["problem"] for v in verdicts if v["problem"]), None)
        path = None
        if dist.rank() == 0:
            if problem is None:
                path, problem = self._commit(step, hidden, verdicts, state)
            if problem is None:
                self._retain(step, path, protect)
            else:
                shutil.rmtree(hidden, ignore_errors=True)
        path, problem = dist.gather_objects((path, problem), self._group)[0]
        return Saved(step, path, problem, time.monotonic() - began)

    def _commit(
        self, step: int, hidden: Path, verdicts: list[dict[str, Any]], state: str
    ) -> tuple[Path | None, str | None]:
        """Returns (committed folder, None), or (None, the disk's problem)."""
        try:
            files = {v["file"]: v["entry"] for v in verdicts}
            files[STATE] = write_file(hidden / STATE, [state.encode()]).model_dump()
            tensors = tensor_entries(piece for v in verdicts for piece in v["pieces"])
            write_manifest(
                hidden / MANIFEST,
                {"format": FORMAT, "step": step, "world": len(verdicts), "files": files, "tensors": tensors},
            )
            sync_folder(hidden)
            path = self._free_name(step)
            os.rename(hidden, path)
        except OSError as error:
            return None, f"{error.strerror} ({hidden})"
        return path, None

    def _free_name(self, step: int) -> Path:
        """Returns a name that nobody has: a step repeated after a damaged one replaces nothing."""
        path, attempt = self.folder / f"step-{step:08d}", 0
        while path.exists():
            attempt += 1
            path = self.folder / f"step-{step:08d}.{attempt}"
        return path

    def _retain(self, step: int, path: Path | None, protect: frozenset[int]) -> None:
        """Points LATEST at the committed checkpoint and removes what is not new, kept or protected."""
        assert path is not None
        try:
            sync_folder(self.folder)
            write_file(self.folder / f".{LATEST}", [path.name.encode(), b"\n"])
            os.replace(self.folder / f".{LATEST}", self.folder / LATEST)
            sync_folder(self.folder)
            self._bad.discard(path.name)
            older = [n for n in self._complete() if n != path.name and n not in self._bad]
            kept = [path.name, *older[: self._keep - 1], *(n for n in older if _order(n)[0] in protect)]
            for entry in list(self.folder.iterdir()):
                self._discard(entry, kept)
        except OSError as error:
            log.warning("checkpoint %s is whole, but tidying up failed: %s", path.name, error)

    def _discard(self, entry: Path, kept: list[str]) -> None:
        """Removes one superseded, damaged or torn folder; hidden first, so that none is ever half there."""
        if not entry.is_dir():
            return
        if _NAME.fullmatch(entry.name) and entry.name not in kept:
            hidden = entry.with_name(f".{entry.name}.{self._token}-removed")
            os.rename(entry, hidden)
            shutil.rmtree(hidden, ignore_errors=True)
        elif entry.name.startswith(".step-"):
            shutil.rmtree(entry, ignore_errors=True)


def _order(name: str) -> tuple[int, int]:
    match = _NAME.fullmatch(name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _write_own(hidden: Path, fragments: list[Fragment]) -> dict[str, Any]:
    """Writes, syncs and re-reads this rank's shard; returns its entry and pieces, or the disk's problem."""
    file = f"rank-{dist.rank():05d}-of-{dist.world_size():05d}.safetensors"
    try:
        hidden.mkdir(parents=True, exist_ok=True)
        needed = sum(f.tensor.nbytes for f in fragments)
        if shutil.disk_usage(hidden).free < needed:
            raise OSError(errno.ENOSPC, f"{needed} bytes are needed: {os.strerror(errno.ENOSPC)}")
        entry = write_shard(hidden / file, fragments)
        sync_folder(hidden)
        if hash_file(hidden / file) != entry:
            raise OSError(errno.EIO, "what was written reads back differently")
    except OSError as error:
        return {"problem": f"rank {dist.rank()}: {error.strerror} ({hidden / file})"}
    return {"problem": None, "file": file, "entry": entry.model_dump(), "pieces": piece_list(fragments, file)}


def _verify(folder: Path) -> tuple[Manifest | None, str | None]:
    """Returns (manifest, None), or (None, what is wrong with it or with this rank's share of the files)."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return None, error.found
    for file in sorted(manifest.files)[dist.rank() :: dist.world_size()]:
        problem = problem_of(folder / file, manifest.files[file])
        if problem is not None:
            return None, problem
    return manifest, None


def _open(folder: Path, manifest: Manifest) -> Checkpoint:
    reader = CheckpointReader(folder, manifest)
    return Checkpoint(manifest.step, folder, reader.state, reader)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Returns one checkpoint after verifying all its files, on one process and without DeepSpeed.

    Raises:
        CheckpointError: names the damaged file.
    """
    manifest = read_manifest(folder)
    for file, entry in manifest.files.items():
        problem = problem_of(folder / file, entry)
        if problem is not None:
            raise CheckpointError(problem, "the file as it was written", "Use an older checkpoint")
    return _open(folder, manifest)


def read_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Returns name -> whole tensor of every parameter (fp32) and buffer of a checkpoint; closes its reader.

    For evaluation, prediction and export: no DeepSpeed, any number of writers.
    """
    reader = checkpoint.reader
    try:
        return {
            name: reader.whole(name, state) for name, state in reader.table() if state in (WEIGHT, BUFFER)
        }
    finally:
        reader.close()
