"""Features of past pairs, for contrast with more pairs than a batch holds (FIBER, 2).

Legend: Q places, P pairs of a micro-batch, N pairs that come in at once, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsvlp import dist

EMPTY, NOISE = -1, -2  # in place of an image row


class Queue(nn.Module):
    """A ring of the last Q pairs of the global batches, the same on every rank; all of it is state.

    Pairs enter in the order of the global batch, so the ring does not depend on how the batch was cut.
    Nothing here waits for the device.

    Args:
        size: Q.
        width: D.
        noise: start with unnormalised Gaussian noise that counts as negatives, as FIBER's code; else empty.

    Attributes:
        image, text: float32 [Q, D] unit vectors.
        rows: int64 [Q] image rows in the data set, `EMPTY` or `NOISE` where there is none.
        samples: int64 [Q] samples in the data set, -1 where there is none.
        place: int64 scalar, where the next pair goes: the oldest one's.
    """

    image: Tensor
    text: Tensor
    rows: Tensor
    samples: Tensor
    place: Tensor

    def __init__(self, size: int, width: int, noise: bool) -> None:
        super().__init__()
        fill = torch.randn if noise else torch.zeros
        self.register_buffer("image", fill(size, width))
        self.register_buffer("text", fill(size, width))
        self.register_buffer("rows", torch.full((size,), NOISE if noise else EMPTY))
        self.register_buffer("samples", torch.full((size,), -1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._before: dict[str, Tensor] = {}

    def negatives(self, images: Tensor, same_image: bool) -> Tensor:
        """Returns bool [P, Q]: the places that are a pair's negatives.

        Args:
            images: int64 [P] image rows of the pairs.
            same_image: past pairs of the own image count too.
        """
        filled = self.rows != EMPTY
        return filled.expand(len(images), -1) if same_image else filled & (images[:, None] != self.rows)

    @torch.no_grad()
    def remember(self, image: Tensor, text: Tensor, rows: Tensor, samples: Tensor, counts: Tensor) -> None:
        """Keeps a micro-batch's pairs until the next move.

        Args:
            image, text: float32 [P, D].
            rows, samples: int64 [P].
            counts: bool [P]; a pair of weight 0 takes a place that stays empty.
        """
        names = torch.stack((torch.where(counts, rows, EMPTY), samples), 1)
        self._pending.append((torch.cat((image, text), 1).detach(), names))

    @torch.no_grad()
    def move(self) -> None:
        """Puts what was remembered, of all ranks, in the oldest pairs' places. Every rank must call."""
        if not self._pending:
            return
        if not self._before:
            self._before = {name: buffer.clone() for name, buffer in self.named_buffers()}
        features, names = (in_order(torch.stack(part)) for part in zip(*self._pending, strict=True))
        self._pending.clear()
        size, come = len(self.rows), len(features)
        kept = min(size, come)
        last = torch.arange(come - kept, come, device=features.device)
        places = (self.place + last) % size
        image, text = features[last].chunk(2, 1)
        rows, samples = names[last].unbind(1)
        for buffer, values in zip(
            (self.image, self.text, self.rows, self.samples), (image, text, rows, samples), strict=True
        ):
            buffer.index_copy_(0, places, values)
        self.place.copy_((self.place + come) % size)

    @torch.no_grad()
    def settle(self, finite: Tensor) -> None:
        """Ends a step: moves what is left, or goes back to the step's start. Every rank must call.

        Args:
            finite: bool scalar; False: the step changed nothing, nor does it change the queue.
        """
        self.move()
        for name, before in self._before.items():
            buffer = self.get_buffer(name)
            buffer.copy_(torch.where(finite, buffer, before))
        self._before.clear()


def in_order(values: Tensor) -> Tensor:
    """Returns micro-batches [M, P, ...] of all ranks in the order of the global batch: [M x world x P, ...].

    Micro-batch m of rank r holds the places from (m x world + r) x P on.
    """
    return dist.all_gather(values).transpose(0, 1).flatten(0, 2)
