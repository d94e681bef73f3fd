"""Past pairs' images and texts for the next step's negatives: names, and the features they were known by.

ITC's queue holds thousands of past pairs but only their features; to be judged by ITM a pair's image
or text must be brought again. So each pair draws from the queue, by its own similarities, one image
and one text; they are fetched while the step still runs, and the pairs of the next step's micro-batch
in the same places draw their negatives from their own batch and from these (`negatives = "queue"`;
FIBER's code keeps raw images and draws at once: a deviation of one step).

Legend: G places, one for each pair of the global batch, P pairs of a micro-batch, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsvlp.objectives.queue import in_order

EMPTY = -1  # in place of a sample


class Pool(nn.Module):
    """What was drawn for each place of the global batch, the same on every rank; all of it is state.

    It moves with the data: after a step that changed no weight as well, for the next step's images are
    on their way before it is known whether this one was finite.

    Args:
        size: G.
        width: D.

    Attributes:
        samples: int64 [G, 2], the image's sample and the text's, `EMPTY` where there is none.
        image, text: float32 [G, D], their unit vectors when they entered the queue.
    """

    samples: Tensor
    image: Tensor
    text: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("samples", torch.full((size, 2), EMPTY))
        self.register_buffer("image", torch.zeros(size, width))
        self.register_buffer("text", torch.zeros(size, width))
        self._pending: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def remember(self, samples: Tensor, image: Tensor, text: Tensor) -> None:
        """Keeps what a micro-batch drew until the step's end.

        Args:
            samples: int64 [P, 2], `EMPTY` where nothing could be drawn.
            image, text: float32 [P, D].
        """
        features = torch.cat((image, text), 1)
        fit = features.isfinite().all(1, keepdim=True)  # a step that is not finite leaves its mark nowhere
        self._pending.append((torch.where(fit, samples, EMPTY), torch.where(fit, features, 0.0)))

    @property
    def drawn(self) -> list[Tensor]:
        """Returns the samples int64 [P, 2] that this step's micro-batches have drawn so far."""
        return [samples for samples, _ in self._pending]

    @torch.no_grad()
    def settle(self) -> None:
        """Ends a step: what was drawn for the next is in place. Every rank must call."""
        if not self._pending:
            return
        samples, features = (in_order(torch.stack(part)) for part in zip(*self._pending, strict=True))
        self._pending.clear()
        image, text = features.chunk(2, 1)
        self.samples.copy_(samples)
        self.image.copy_(image)
        self.text.copy_(text)
