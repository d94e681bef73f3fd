"""A decoding backend that behaves as those on a GPU do, on the CPU."""

import weakref
from collections.abc import Sequence

import numpy as np
import simplejpeg
import torch
from torch import Tensor


class FakeDevice:
    """Fails a whole list for one bad JPEG, and writes at once over all memory that nobody holds any more.

    The second is what an engine that takes no notice of streams may do at any moment.

    Attributes:
        calls: how many JPEGs each call had.
    """

    name = "fake 1.0"
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.calls: list[int] = []
        self._idle: list[np.ndarray] = []

    def decode(self, jpegs: Sequence[Tensor]) -> list[Tensor | None]:
        self.calls.append(len(jpegs))
        for memory in self._idle:
            memory.fill(np.random.default_rng(len(self.calls)).integers(256))
        try:
            return [self._decode(jpeg) for jpeg in jpegs]
        except ValueError as error:
            raise RuntimeError(f"Error while decoding JPEG images: {error}") from error

    def _decode(self, jpeg: Tensor) -> Tensor:
        pixels = simplejpeg.decode_jpeg(jpeg.numpy(), fastdct=True, strict=True).transpose(2, 0, 1)
        fitting = [index for index, memory in enumerate(self._idle) if memory.size == pixels.size]
        memory = self._idle.pop(fitting[0]) if fitting else np.empty(pixels.size, np.uint8)
        held = memory.reshape(pixels.shape)
        held[:] = pixels
        weakref.finalize(held, self._idle.append, memory).atexit = False
        return torch.from_numpy(held)
