"""Brings ITM's negatives from ITC's queue: drawn in one step, fetched meanwhile, used in the next.

After each micro-batch's forward the names of what its pairs drew are copied to the host, and the
fetcher's thread waits for that copy; training waits only where the pictures are not ready when the
next step begins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dsvlp import dist
from dsvlp.data.fetch import Fetcher
from dsvlp.objectives.pool import Pool
from dsvlp.types import Batch


class Feed:
    """Joins the objective's pool and the fetcher. All is done alike on every rank, each for its own places.

    Args:
        pool: what the pairs draw.
        fetcher: brings it.
        micro: pairs of a micro-batch.
        accumulation: micro-batches of a step.
    """

    def __init__(self, pool: Pool, fetcher: Fetcher, micro: int, accumulation: int) -> None:
        self._pool, self._fetcher = pool, fetcher
        self._micro, self._accumulation = micro, accumulation
        self._asked: int | None = None

    def bring(self, step: int, batches: list[Batch]) -> list[Batch]:
        """Returns the micro-batches of a step with what was fetched for them; waits for it.

        At the start of a run, and where one goes on, the pool's names are read first.

        Raises:
            DataError: too many images are bad, or a shard is damaged.
            RunError: nothing came for `data.timeout_seconds`.
        """
        if self._asked is None:
            names = self._pool.samples.cpu()
            for number in range(self._accumulation):
                first = self._first(number)
                part = names[first : first + self._micro]
                self._fetcher.ask(step, first, lambda part=part: part)  # type: ignore[misc]
        assert self._asked in (None, step), f"step {self._asked} was asked for, not {step}"
        return [replace(batch, fetched=self._fetcher.take()) for batch in batches]

    def drawn(self, step: int, number: int) -> None:
        """Begins to fetch for step `step` what this step's `number`-th micro-batch has drawn."""
        self._asked = step
        self._fetcher.ask(step, self._first(number), begin_copy(self._pool.drawn[number]))

    def _first(self, number: int) -> int:
        """Returns the first place of this rank's micro-batch in the global batch."""
        return (number * dist.world_size() + dist.rank()) * self._micro


def begin_copy(tensor: Tensor) -> Callable[[], Tensor]:
    """Begins a copy to the host; returns what waits for it and gives it, in any thread."""
    if tensor.device.type != "cuda":
        return lambda: tensor
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait
