"""Brings ITM's negatives from ITC's queue: drawn in one step and used in the next, or within one.

**Feed.** After each micro-batch's forward the names of what its pairs drew are copied to the host, and
the fetcher's thread waits for that copy; training waits only where the pictures are not ready when the
next step begins. **AtOnce.** The forward itself waits, for the device and then for the pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dsvlp import dist
from dsvlp.data.fetch import Fetcher
from dsvlp.objectives.pool import Pool
from dsvlp.system import Prepared
from dsvlp.types import Batch, Fetched


class AtOnce:
    """What a micro-batch's forward calls for past pairs' images and texts (`dsvlp.passes.Fetch`).

    Args:
        fetcher: brings them.
        step: with the sample it decides the crops, as everywhere on the data's side.
        first: the micro-batch's first place in the global batch.
        device: where they go.
    """

    def __init__(self, fetcher: Fetcher, step: int, first: int, device: torch.device) -> None:
        self._fetcher, self._step, self._first, self._device = fetcher, step, first, device
        self._fetched: Fetched | None = None

    def __call__(self, samples: Tensor) -> Fetched:
        """Returns the images and texts of samples [F, 2] on the device; waits for them.

        Raises:
            DataError: too many images are bad, or a shard is damaged.
            RunError: nothing came for `data.timeout_seconds`.
        """
        self._fetcher.ask(self._step, self._first, begin_copy(samples))
        self._fetched = self._fetcher.take().to(self._device, non_blocking=True)
        return self._fetched

    def seen(self, prepared: Prepared) -> Prepared:
        """Returns a prepared micro-batch with what was fetched for it, as the losses saw it."""
        views = {name: replace(view, fetched=self._fetched) for name, view in prepared.views.items()}
        return replace(prepared, views=views)


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
                first = first_place(number, self._micro)
                part = names[first : first + self._micro]
                self._fetcher.ask(step, first, lambda part=part: part)  # type: ignore[misc]
        assert self._asked in (None, step), f"step {self._asked} was asked for, not {step}"
        return [replace(batch, fetched=self._fetcher.take()) for batch in batches]

    def drawn(self, step: int, number: int) -> None:
        """Begins to fetch for step `step` what this step's `number`-th micro-batch has drawn."""
        self._asked = step
        self._fetcher.ask(step, first_place(number, self._micro), begin_copy(self._pool.drawn[number]))


def first_place(number: int, micro: int) -> int:
    """Returns the first place in the global batch of this rank's `number`-th micro-batch."""
    return (number * dist.world_size() + dist.rank()) * micro


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
