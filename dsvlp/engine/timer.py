"""Where a step's time goes, without stopping the device to ask.

On a GPU a part's time is what passes between two CUDA events, read only at log steps; on the CPU it
is wall time. Waiting for data is the host's wall time on both. What an objective does on the host
(SPL's matching) overlaps with these parts, so it is told beside them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

PARTS = ("data", "prepare", "forward", "backward", "step")


class StepTimer:
    """Sums the seconds of a step's parts since the last `read`.

    Args:
        device: the device of this rank.
        host: objective -> what its work on the host took since the start, see `Objective.seconds`.
    """

    def __init__(self, device: torch.device, host: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._began = time.perf_counter()
        self._host = host or {}
        self._host_began = self._host_seconds()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times what happens inside; `data` is timed on the host also on a GPU."""
        if self._cuda and name != "data":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
            return
        begin_wall = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - begin_wall

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
        if self._events:
            self._events[-1][2].synchronize()
        for name, begin, end in self._events:
            self._seconds[name] += begin.elapsed_time(end) / 1000
        seconds, now = self._seconds, time.perf_counter()
        wall = now - self._began
        self._seconds, self._began = dict.fromkeys(PARTS, 0.0), now
        self._events.clear()
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
