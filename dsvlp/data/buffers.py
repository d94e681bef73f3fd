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
    """Gives out float32 tensors on memory that earlier ones have left.

    Args:
        keep: buffers that may lie idle.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        # No lock: a finalizer may run anywhere, inside `take` too; list.append and list.pop are atomic.
        self._idle: dict[int, list[np.ndarray]] = {}

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """Returns an uninitialised tensor that no other living tensor shares memory with."""
        idle = self._idle.setdefault(prod(shape), [])
        try:
            memory = idle.pop()
        except IndexError:
            memory = np.empty(prod(shape), np.float32)
        held = memory.reshape(shape)  # torch keeps this view alive as long as the storage lives
        weakref.finalize(held, self._give_back, idle, memory).atexit = False
        return torch.from_numpy(held)

    def _give_back(self, idle: list[np.ndarray], memory: np.ndarray) -> None:
        if len(idle) < self._keep:
            idle.append(memory)
