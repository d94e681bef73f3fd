"""A profiler's trace of a few steps, for TensorBoard's profiler plugin, Perfetto and chrome://tracing.

What runs is named by the parts of the step and of the system (`engine.parts`): "data", "forward",
"image tower", "fusion", "backward" and so on; TensorBoard shows how long each kernel ran under them. Without
a trace no profiler and no hook exists.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

from torch import nn
from torch.profiler import ProfilerActivity, profile, supported_activities, tensorboard_trace_handler

from dsvlp import dist
from dsvlp.engine.parts import marked
from dsvlp.engine.timer import StepTimer

log = logging.getLogger(__name__)

FIRST, LAST = 10, 15
"""Steps of an attempt that are traced: the first ones compile, tune and fill caches."""

FOLDER = Path("tensorboard", "trace")
"""Where a run keeps its trace."""


class Trace:
    """Traces an attempt's steps `FIRST` to `LAST` of this rank.

    Args:
        folder: the run's.
        system: the trained module.
        timer: the step's, whose parts are named.
    """

    def __init__(self, folder: Path, system: nn.Module, timer: StepTimer) -> None:
        self._folder, self._system, self._timer = folder / FOLDER, system, timer
        self._taken = 0
        self._open = ExitStack()

    def step(self) -> None:
        """Is told after each step."""
        self._taken += 1
        if self._taken == FIRST - 1:
            self._begin()
        elif self._taken == LAST:
            self._end()

    def close(self) -> None:
        """Ends an attempt: writes a trace that is still under way, and says where it is short."""
        if self._taken < LAST:
            log.warning("--trace is of steps %d to %d, this attempt made only %d", FIRST, LAST, self._taken)
        if FIRST <= self._taken < LAST:
            self._end()

    def _begin(self) -> None:
        wanted = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & supported_activities()
        # Packed: plain, six steps of a tiny model are 50 MB.
        handler = tensorboard_trace_handler(str(self._folder), f"rank-{dist.rank()}", use_gzip=True)
        profiler = profile(activities=wanted, on_trace_ready=handler, record_shapes=True)
        self._open.enter_context(profiler)
        self._open.enter_context(marked(self._system, self._timer, backward=False))
        self._timer.labelled = True

    def _end(self) -> None:
        with self._timer.paused():
            self._open.close()
        self._timer.labelled = False
        log.info("wrote a trace of this attempt's steps from %d on: %s", FIRST, self._folder)
