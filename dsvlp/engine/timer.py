"""Where a step's time goes, without stopping the device to ask.

A step is one line of time, cut where a part begins or ends; what lies between two cuts belongs to the
innermost open part, so parts nest and never count twice. On a GPU a cut is a CUDA event, read only at
log steps; on the CPU it is wall time. Waiting for data is the host's wall time on both. What an
objective does on the host (SPL's matching) overlaps with these parts, so it is told beside them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.profiler import record_function

PARTS = ("data", "prepare", "forward", "backward", "step")
HOST = "data"


class StepTimer:
    """Sums the seconds of a step's parts since the last `read`.

    Args:
        device: the device of this rank.
        host: objective -> what its work on the host took since the start, see `Objective.seconds`.

    Attributes:
        labelled: parts are also named in torch's profiler; changed between steps only.
        host_part: the part that the host's clock times on a GPU too; None: the GPU's for all, which tells how
            long the GPU stood still for it.
    """

    def __init__(self, device: torch.device, host: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self.labelled = False
        self.host_part: str | None = HOST
        self._cuda = device.type == "cuda"
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._open: list[str] = []
        self._labels: list[AbstractContextManager[Any]] = []
        self._cut_at = 0.0
        self._event: torch.cuda.Event | None = None
        self._pieces: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._began = time.perf_counter()
        self._host = host or {}
        self._host_began = self._host_seconds()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times what happens inside, less the parts inside it."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str) -> None:
        """Begins a part inside the open one; each ends with a `leave`."""
        new = self.innermost != name  # a part inside itself is one
        if new:
            self._cut()
        self._open.append(name)
        if self.labelled:
            self._labels.append(record_function(name) if new else nullcontext())
            self._labels[-1].__enter__()

    def leave(self) -> None:
        """Ends the innermost part."""
        if self.labelled:
            self._labels.pop().__exit__(None, None, None)
        name = self._open.pop()
        if self.innermost != name:
            self._cut(name)

    def turn(self, name: str) -> None:
        """Goes on with the innermost part under another name, unless it has it already."""
        if self._open[-1] != name:
            self._cut()
            self._open[-1] = name

    @property
    def innermost(self) -> str | None:
        """The open part that time is counted for, None between parts."""
        return self._open[-1] if self._open else None

    def _cut(self, name: str | None = None) -> None:
        """Books the time since the last cut on a part, the innermost open one."""
        name = name or self.innermost
        now = time.perf_counter()
        if name is not None and (name == self.host_part or not self._cuda):
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._cut_at
        self._cut_at = now
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            if name is not None and name != self.host_part and self._event is not None:
                self._pieces.append((name, self._event, event))
            self._event = event

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens inside out of the steps' wall time: saving and validation are no steps."""
        begin, host = time.perf_counter(), self._host_seconds()
        yield
        self._began += time.perf_counter() - begin
        for name, seconds in self._host_seconds().items():
            self._host_began[name] += seconds - host[name]

    def read(self) -> tuple[dict[str, float], float]:
        """Returns (part -> seconds, wall seconds) since the last read. Waits for the device."""
        if self._pieces:
            self._pieces[-1][2].synchronize()
        for name, begin, end in self._pieces:
            self._seconds[name] = self._seconds.get(name, 0.0) + begin.elapsed_time(end) / 1000
        seconds, now = self._seconds, time.perf_counter()
        wall = now - self._began
        self._seconds, self._began = dict.fromkeys(PARTS, 0.0), now
        self._pieces.clear()
        return seconds, wall

    def read_host(self) -> dict[str, float]:
        """Returns "objective/work" -> seconds on the host since the last call, pauses left out.

        "spl/waiting" is a share of `forward`; "spl/matching" adds up the threads that work meanwhile.
        """
        now, before = self._host_seconds(), self._host_began
        self._host_began = now
        return {name: seconds - before[name] for name, seconds in now.items()}

    def _host_seconds(self) -> dict[str, float]:
        return {f"{name}/{work}": s for name, works in self._host.items() for work, s in works.items()}
