"""Ends a process that has hung, with the stacks of all its threads: in training and in evaluation.

A collective that waits for a dead or stopped rank never returns, and the library's own time-outs
do not cover everything (BLOOM lost 18 hours to one hang in evaluation). Whoever makes progress
calls `progress`; a thread of its own looks at the monotonic clock, which no time service moves.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from dsvlp.engine.stop import HUNG

log = logging.getLogger(__name__)


def _end_process() -> None:
    os._exit(HUNG)  # sys.exit would only end the watchdog's thread


class Watchdog:
    """Watches one process; a context manager.

    Args:
        seconds: longest time between two calls of `progress`.
        end: what happens then, after the stacks are printed.
        output: file with a descriptor that gets the stacks; standard error by default.
    """

    def __init__(
        self, seconds: float, end: Callable[[], None] = _end_process, output: TextIO | None = None
    ) -> None:
        self._seconds, self._end, self._output = seconds, end, output
        self._doing, self._since = "starting", time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._since = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join(timeout=5)

    def progress(self, doing: str) -> None:
        """Says that the process lives, and what it does from now on ("step 12")."""
        self._doing, self._since = doing, time.monotonic()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            quiet = time.monotonic() - self._since
            if quiet > self._seconds:
                self._report(quiet)
                self._end()
                return

    def _report(self, quiet: float) -> None:
        log.error(
            "no progress for %.0f s in %s (limit engine.watchdog_seconds = %g): the stacks of all threads "
            "follow; the process ends with code %d, a new start goes on from the last checkpoint",
            quiet,
            self._doing,
            self._seconds,
            HUNG,
        )
        output = self._output or sys.__stderr__
        if output is not None:
            faulthandler.dump_traceback(output, all_threads=True)
