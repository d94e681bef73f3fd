"""Where a run's time went: wall seconds by phase, over all its attempts. Torch-free.

big_vision's `Chrono` is the model: the clock is saved in the checkpoint, so that GPU-seconds (or
CPU-seconds, named so) on a curve's axis go on where the checkpoint left them. Redone work after a
kill is not on this clock; the ledger has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PHASES = ("startup", "train", "validate", "save", "pictures")


class Clock:
    """Wall seconds by phase, monotonic.

    Args:
        devices: GPUs (or processes on CPU) that are busy while this run is.
        now: the monotonic clock, seconds.

    Attributes:
        seconds: phase -> wall seconds, all attempts.
        device_seconds: seconds x devices, all phases; the number of devices may change between attempts.
    """

    def __init__(self, devices: int, now: Callable[[], float] = time.monotonic) -> None:
        self._devices, self._now = devices, now
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.device_seconds = 0.0
        self._phase, self._mark = "startup", now()

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
        self.seconds[self._phase] += passed
        self.device_seconds += passed * self._devices
        self._mark = now
        self._phase = next_phase or self._phase

    @property
    def total(self) -> float:
        """Wall seconds of all phases and attempts, as of the last tick."""
        return sum(self.seconds.values())

    def state_dict(self) -> dict[str, Any]:
        """Returns the clock as JSON, booked up to now."""
        self.tick()
        return {"seconds": dict(self.seconds), "device_seconds": self.device_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Adds the time of earlier attempts to this one's."""
        for name, seconds in state["seconds"].items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.device_seconds += state["device_seconds"]
