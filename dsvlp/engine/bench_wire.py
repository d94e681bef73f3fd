"""How long a step's collectives take, and how much they move: for benches, which end with their process.

`torch.distributed` is watched at its functions' names, before DeepSpeed takes references to them. On the
CPU a collective's time holds the waiting for slower ranks. On a GPU it is that of the stream it was
called on: what runs behind other work is not seen, and need not be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor

from dsvlp import dist
from dsvlp.engine.bench_parts import COMMUNICATION
from dsvlp.engine.timer import StepTimer

# How often a rank sends what it is given, where the ring is long: reduce and scatter, then gather.
SENT = {
    "all_reduce": 2,
    "all_gather": 1,
    "all_gather_into_tensor": 1,
    "_all_gather_base": 1,
    "reduce_scatter": 1,
    "reduce_scatter_tensor": 1,
    "_reduce_scatter_base": 1,
    "reduce": 1,
    "broadcast": 1,
    "all_to_all_single": 1,
    "all_gather_object": 0,
    "barrier": 0,
}
_RATE_ELEMENTS = 1 << 23  # 32 MiB of float32: a bucket's size
_RATE_TIMES = 4


class Wire:
    """Books collectives on a step's timer.

    Attributes:
        timer: the step's; None: nothing is booked.
        sent: bytes that this rank has sent, by the ring's arithmetic, while booked.
    """

    def __init__(self) -> None:
        self.timer: StepTimer | None = None
        self.sent = 0.0

    def watch(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a collective that books its time, and that of a later `wait` for it."""

        def watched(*arguments: Any, **named: Any) -> Any:
            timer = self.timer
            if timer is None or timer.innermost in (None, COMMUNICATION):
                return function(*arguments, **named)
            self.sent += sent_bytes(name, [*arguments, *named.values()], dist.world_size())
            with timer.part(COMMUNICATION):
                work = function(*arguments, **named)
            return None if work is None else _Work(work, timer)

        return watched


class _Work:
    """A collective under way; waiting for it is communication too."""

    def __init__(self, work: Any, timer: StepTimer) -> None:
        self._work, self._timer = work, timer

    def wait(self, *arguments: Any) -> Any:
        if self._timer.innermost is None:
            return self._work.wait(*arguments)
        with self._timer.part(COMMUNICATION):
            return self._work.wait(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def sent_bytes(name: str, arguments: list[Any], world: int) -> float:
    """Returns the bytes that one of `world` ranks sends for a collective given these arguments."""
    lists = [argument if isinstance(argument, list | tuple) else [argument] for argument in arguments]
    sizes = [sum(t.numel() * t.element_size() for t in one if isinstance(t, Tensor)) for one in lists]
    return SENT[name] * max(sizes, default=0) * (world - 1) / world


@contextmanager
def watched() -> Iterator[Wire]:
    """Watches the collectives of this process; nothing is booked before the wire has a timer."""
    wire = Wire()
    places = [
        (module, name) for module in (td, td.distributed_c10d) for name in SENT if hasattr(module, name)
    ]
    before = [getattr(module, name) for module, name in places]
    for (module, name), function in zip(places, before, strict=True):
        setattr(module, name, wire.watch(name, function))
    try:
        yield wire
    finally:
        for (module, name), function in zip(places, before, strict=True):
            setattr(module, name, function)


def measured_wire(device: torch.device) -> float:
    """Returns the bytes/s that a rank sends in a large all-reduce, infinite on one process. Every rank must
    call."""
    if dist.world_size() == 1:
        return float("inf")
    tensor = torch.ones(_RATE_ELEMENTS, device=device)
    dist.all_reduce_sum(tensor)[0].item()
    begin = time.perf_counter()
    for _ in range(_RATE_TIMES):
        dist.all_reduce_sum(tensor)
    tensor[0].item()
    seconds = time.perf_counter() - begin
    return _RATE_TIMES * sent_bytes("all_reduce", [tensor], dist.world_size()) / seconds


def measured_copy(device: torch.device) -> float:
    """Returns the bytes/s of this device's memory, read and written by a copy of 256 MiB."""
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source)
    target.copy_(source)[0].item()
    begin = time.perf_counter()
    for _ in range(_RATE_TIMES):
        target.copy_(source)
    target[0].item()
    return _RATE_TIMES * 2 * source.numel() * source.element_size() / (time.perf_counter() - begin)
