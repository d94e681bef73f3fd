"""Asking a run to stop: a signal only sets a flag, which every rank reads at the same step boundary.

SIGTERM, SIGUSR2 (Slurm's warning) and SIGINT all mean the same: finish the step, save together,
end with the code `STOPPED`. The flag of each rank travels in the step's one all-reduce, so the
ranks agree at no cost (see `dsvlp.engine.step`). A second SIGINT ends the process at once; the
checkpoints on disk stay whole. Imports no torch: the launcher needs the code.
"""

from __future__ import annotations

import logging
import signal
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger(__name__)

STOPPED = 75
"""Exit code "stopped and saved, start me again" (EX_TEMPFAIL): what a batch script requeues on."""

HUNG = 124
"""Exit code of a process that its watchdog ended."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


def hold() -> None:
    """Holds stop signals back until a `StopFlag` takes them: none is lost, none kills a starting process.

    The state survives `exec`. Called before the process has other threads, which would take the signals;
    those that begin later hold them back too.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


class StopFlag:
    """Remembers the first stop signal of this process; a context manager that owns the handlers.

    On entry it gets the signals that `hold` kept.

    Attributes:
        received: name of the first signal, None before it.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopFlag":
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # No logging here: a handler that interrupts a logging call would wait for its own lock.
        again = self.received is not None
        self.received = self.received or signal.Signals(number).name
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
