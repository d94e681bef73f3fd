"""Fragments: the pieces of the training state that one rank owns, by name, without communication.

ZeRO cuts each group's flattened parameters over the ranks. A fragment is one contiguous piece of one
flattened tensor of state; together the fragments of all ranks are the whole state, each element once.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

WEIGHT, BUFFER = "weight", "buffer"


@dataclass(frozen=True)
class Fragment:
    """One piece of one tensor of state.

    Attributes:
        name: the tensor's canonical name in the system ("model.text.embeddings.weight").
        state: "weight" (the fp32 master), "buffer", or a moment of the optimizer ("exp_avg").
        start: first element in the flattened tensor.
        tensor: 1-d view of the live state, on whatever device it lives; not a copy.
        shape: shape of the whole tensor.
    """

    name: str
    state: str
    start: int
    tensor: Tensor
    shape: tuple[int, ...]


class Reader(Protocol):
    """What an engine needs of a checkpoint.

    Attributes:
        state: the JSON state; `state["engine"]` is what `Engine.layout_state` returned.
    """

    state: dict[str, Any]

    def table(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """Returns (name, state) -> shape of every tensor in the checkpoint."""

    def read(self, name: str, state: str, start: int = 0, count: int | None = None) -> Tensor:
        """Returns `count` elements of a flattened tensor from `start`, 1-d, on the CPU."""


def owners(sizes: list[int], world: int) -> list[int]:
    """Returns for each replicated tensor the rank that writes it: the least loaded one, the same everywhere.

    Whole tensors, not shares: a thousand ranks then make as many pieces as there are tensors.

    Args:
        sizes: numbers of elements, in an order that is equal on all ranks.
        world: number of ranks.
    """
    load = [(0, rank) for rank in range(world)]
    out = []
    for size in sizes:
        total, rank = heapq.heappop(load)
        out.append(rank)
        heapq.heappush(load, (total + size, rank))
    return out
