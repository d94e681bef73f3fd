"""Where a run's time went: wall seconds by phase, of this attempt and over all of them. Torch-free.

big_vision's `Chrono` is the model: the clock is saved in the checkpoint, so that GPU-seconds (or
CPU-seconds, named so) on a curve's axis go on where the checkpoint left them. What a killed attempt
did after its last checkpoint is not in that sum; the ledger has it, by this attempt's own seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PHASES = ("train", "startup", "data_wait", "redone", "validate", "save", "pictures")
"""`redone`: steps that an earlier attempt had made already, lost because it ended before saving them."""


class Clock:
    """Wall seconds by phase, monotonic.

    Args:
        devices: GPUs (or processes on CPU) that are busy while this run is.
        now: the monotonic clock, seconds.
        earlier: seconds of start-up before this clock was made.

    Attributes:
        own: phase -> wall seconds of this attempt, as of the last tick.
        device_seconds: seconds x devices, all phases and attempts; the number of devices may change
            between attempts.
    """

    def __init__(self, devices: int, now: Callable[[], float] = time.monotonic, earlier: float = 0.0) -> None:
        self._devices, self._now = devices, now
        self.own = dict.fromkeys(PHASES, 0.0)
        self._before: dict[str, float] = {}
        self.device_seconds = 0.0
        self._phase, self._mark = "startup", now() - earlier

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time inside under `name`; phases nest, the inner one gets its time alone."""
        outer = self._phase
        self.tick(name)
        try:
            yield
        finally:
            self.tick(outer)

    def tick(self, next_phase: str | None = None) -> None:
        """Books the time since the last call, and goes on in `next_phase`."""
        now = self._now()
        passed = now - self._mark
        self.own[self._phase] += passed
        self.device_seconds += passed * self._devices
        self._mark = now
        self._phase = next_phase or self._phase

    @property
    def seconds(self) -> dict[str, float]:
        """Phase -> wall seconds of all attempts, as of the last tick."""
        names = dict.fromkeys([*self.own, *self._before])
        return {name: self.own.get(name, 0.0) + self._before.get(name, 0.0) for name in names}

    @property
    def total(self) -> float:
        """Wall seconds of all phases and attempts, as of the last tick."""
        return sum(self.seconds.values())

    def state_dict(self) -> dict[str, Any]:
        """Returns the clock as JSON, booked up to now."""
        self.tick()
        return {"seconds": self.seconds, "device_seconds": self.device_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the time of earlier attempts beside this one's. Called once, at the resume."""
        self._before = dict(state["seconds"])
        self.device_seconds += state["device_seconds"]
