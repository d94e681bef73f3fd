"""A stream of the loader's own on a GPU, and how what it made passes safely to the stream that trains.

Three dangers, each with its remedy here:

* nvJPEG's hardware engine takes no notice of streams: it writes at once into memory that the allocator
  gave out again while earlier kernels still read it. `settle` waits for them just before each decode.
* The consumer's stream must not read what the lane has not finished: `mark` and `hand_over`.
* The allocator would give the consumer's tensors out again to the lane as soon as Python drops them:
  `hand_over` records that another stream uses them.

On the CPU everything happens in its order, and all of this is nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor


class Lane:
    """A device as one loader's thread sees it.

    Args:
        device: where tensors are made.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Makes the device and the stream this thread's own for a while."""
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            yield

    def settle(self) -> None:
        """Waits until everything that the lane was given is done."""
        if self._stream is not None:
            self._stream.synchronize()

    def settle_device(self) -> None:
        """Waits for all streams, those inside a library too: after a decode that failed half-way."""
        if self._stream is not None:
            torch.cuda.synchronize(self.device)

    def send(self, values: np.ndarray) -> Tensor:
        """Returns an array as a tensor on the device, through pinned memory."""
        tensor = torch.from_numpy(values)
        return tensor if self._stream is None else tensor.pin_memory().to(self.device, non_blocking=True)

    def mark(self) -> torch.cuda.Event | None:
        """Returns what `hand_over` needs to know when everything given to the lane so far is done."""
        return None if self._stream is None else self._stream.record_event()

    def hand_over(self, mark: torch.cuda.Event | None, *tensors: Tensor | None) -> None:
        """Lets the calling thread's stream use tensors of the lane; the host does not wait.

        Args:
            mark: taken after they were made.
            tensors: what will be used; None and tensors on the CPU are passed over.
        """
        if mark is None:
            return
        consumer = torch.cuda.current_stream(self.device)
        consumer.wait_event(mark)
        for tensor in tensors:
            if tensor is not None and tensor.is_cuda:
                tensor.record_stream(consumer)
