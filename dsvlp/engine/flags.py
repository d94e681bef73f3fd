"""Device flags read by the host one step late, so that the host never waits for the step it just queued.

Every rank posts the same all-reduced values and reads them at the same boundary, hence acts alike.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LateFlags:
    """Two host buffers that take turns: `post` begins a copy, the next `read` waits for it.

    Args:
        device: where the flags are computed.
        size: number of flags.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        self._cuda = device.type == "cuda"
        self._buffers = [torch.zeros(size, pin_memory=self._cuda) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)] if self._cuda else []
        self._posted: int | None = None

    def post(self, flags: Tensor) -> None:
        """Begins the copy of float32 [size]; an unread earlier post is dropped."""
        slot = 0 if self._posted is None else 1 - self._posted
        self._buffers[slot].copy_(flags, non_blocking=self._cuda)
        if self._cuda:
            self._copied[slot].record()
        self._posted = slot

    def read(self) -> list[float] | None:
        """Returns the last posted flags, None before the first post."""
        if self._posted is None:
            return None
        if self._cuda:
            self._copied[self._posted].synchronize()
        values: list[float] = self._buffers[self._posted].tolist()
        return values
