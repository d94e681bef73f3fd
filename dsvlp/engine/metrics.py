"""Numbers leave the run here: TensorBoard and `metrics.jsonl`. The only file that knows TensorBoard's writer.

TensorBoard has one integer axis, so the main curves are written three times: by step, by samples
and by device-seconds, the latter two in folders of their own, since `purge_step`, which hides what
a resumed run writes again, counts in the axis of its folder. A folder that cannot be written
warns once and never ends a run.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summary

log = logging.getLogger(__name__)

MAIN = ("loss/", "validation/")
"""Prefixes of the curves that are also written by samples and by device-seconds."""


class Metrics:
    """Writes the numbers of one run; on other ranks than 0 make none.

    Args:
        folder: the run's folder.
        step: the step the run goes on from; later points of an earlier attempt are removed.
        samples: pairs seen by then.
        device_seconds: device-seconds spent by then.
        device: "gpu" or "cpu", for the name of the third axis.
    """

    def __init__(
        self, folder: Path, step: int = 0, samples: int = 0, device_seconds: float = 0.0, device: str = "cpu"
    ) -> None:
        self._time_axis = f"by_{device}_seconds"
        starts = {"": step, "by_samples": samples, self._time_axis: int(device_seconds)}
        self._boards = {
            axis: self._open(folder / "tensorboard" / axis, start + 1 if start else None)
            for axis, start in starts.items()
        }
        self._lines = self._open_lines(folder / "metrics.jsonl", step)

    def scalars(self, step: int, samples: int, device_seconds: float, values: dict[str, float]) -> None:
        """Writes one line and one point a value."""
        line = {"step": step, "samples": samples, "device_seconds": round(device_seconds, 3), **values}
        self._write_line(json.dumps({key: _finite(value) for key, value in line.items()}))
        main = {name: value for name, value in values.items() if name.startswith(MAIN)}
        self._points("", step, values)
        self._points("by_samples", samples, main)
        self._points(self._time_axis, int(device_seconds), main)

    def text(self, step: int, name: str, markdown: str) -> None:
        """Writes a text."""
        self._board("", lambda board: board.add_text(name, markdown, step))

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes a picture, uint8 [H, W, 3]."""
        self._board("", lambda board: board.add_image(name, picture, step, dataformats="HWC"))

    def hparams(self, keys: dict[str, Any], results: dict[str, float]) -> None:
        """Writes the recipe's keys beside the run's results, into the run's own folder."""
        flat = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in keys.items()
        }

        def write(board: SummaryWriter) -> None:
            # add_hparams() would make another run folder named by the wall clock.
            for summary in hparams_summary(flat, results):
                board._get_file_writer().add_summary(summary)
            for name, value in results.items():
                board.add_scalar(name, value)

        self._board("", write)

    def flush(self) -> None:
        """Hands everything to the system, before a checkpoint that counts on it."""
        for axis in list(self._boards):
            self._board(axis, lambda board: board.flush())

    def close(self) -> None:
        """Flushes and closes the files."""
        for axis in list(self._boards):
            self._board(axis, lambda board: board.close())
        if self._lines is None:
            return
        try:
            self._lines.close()
        except OSError as error:  # lines that a full disk refused are tried once more here
            log.warning("metrics.jsonl misses its last lines: %s", error)

    def _points(self, axis: str, x: int, values: dict[str, float]) -> None:
        prefix = f"{axis}/" if axis else ""

        def write(board: SummaryWriter) -> None:
            for name, value in values.items():
                board.add_scalar(prefix + name, value, x)

        self._board(axis, write)

    def _open(self, folder: Path, purge_step: int | None) -> SummaryWriter | None:
        try:
            return SummaryWriter(str(folder), purge_step=purge_step)
        except OSError as error:
            log.warning(
                "TensorBoard's folder %s cannot be written (%s); training goes on without", folder, error
            )
            return None

    def _board(self, axis: str, work: Callable[[SummaryWriter], None]) -> None:
        board = self._boards[axis]
        if board is None:
            return
        try:
            work(board)
        except OSError as error:  # a full disk, seen by the writer's thread and raised at the next call
            log.warning("TensorBoard's file can no longer be written (%s); training goes on without", error)
            self._boards[axis] = None

    def _open_lines(self, path: Path, step: int) -> TextIO | None:
        try:
            truncate(path, step)
            return path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            log.warning("%s cannot be written (%s); training goes on without", path, error)
            return None

    def _write_line(self, text: str) -> None:
        if self._lines is None:
            return
        try:
            self._lines.write(text + "\n")
        except OSError as error:
            log.warning("metrics.jsonl misses a line: %s", error)


def truncate(path: Path, step: int) -> None:
    """Removes the lines after `step`, and a torn last one, so that no point stands twice."""
    if not path.exists():
        return
    kept = [line for line in read_lines(path) if line["step"] <= step]
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    os.replace(aside, path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a `metrics.jsonl`, a torn last line left out."""
    if not path.exists():
        return []
    *whole, _torn = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in whole]


def _finite(value: float) -> float | str:
    """Returns the number, or its name where JSON has none ("nan", "inf")."""
    return value if np.isfinite(value) else str(value)
