"""Memory that is used again once nobody holds it.

A micro-batch of images is tens of megabytes. Taken from the system anew, its pages must be zeroed one
by one: 0.7 ms an image of 384 pixels, as much as its resize costs. A fixed ring of buffers would be
overwritten under a consumer that holds a batch longer; here a buffer returns only when the last tensor
on it is gone.
"""

from __future__ import annotations

import weakref
from math import prod

import numpy as np
import torch
from torch import Tensor


class Buffers:
    """Gives out tensors on memory that earlier ones have left.

    Args:
        keep: buffers that may lie idle.
        dtype: of their values.
    """

    def __init__(self, keep: int, dtype: type[np.floating] = np.float32) -> None:
        self._keep, self._dtype = keep, dtype
        # No lock: a finalizer may run anywhere, inside `take` too; it only appends, and `take` alone removes.
        self._idle: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """Returns an uninitialised tensor that no other living tensor shares memory with.

        Tensors of several sizes share the buffers: each gets the smallest idle one that is large enough.
        """
        count = prod(shape)
        memory = self._idle_of(count)
        held = memory[:count].reshape(shape)  # torch keeps this view alive as long as the storage lives
        weakref.finalize(held, self._give_back, memory).atexit = False
        return torch.from_numpy(held)

    def _idle_of(self, count: int) -> np.ndarray:
        """Returns an idle buffer of `count` values or more; else a new one, to which the oldest gives way."""
        fitting = [(memory.size, -place) for place, memory in enumerate(self._idle) if memory.size >= count]
        if fitting:
            return self._idle.pop(-min(fitting)[1])
        if len(self._idle) >= self._keep:
            self._idle.pop(0)
        return np.empty(count, self._dtype)

    def _give_back(self, memory: np.ndarray) -> None:
        if len(self._idle) < self._keep:
            self._idle.append(memory)
