"""Which groups stand in a global batch: the stream's in their order, or those of like aspect.

Where images keep their aspect, landscapes and portraits in one batch would mean padding for half of it. So
windows of W global batches are sorted by aspect ratio, cut into batches again, and the batches shuffled
(specification, Data, principle 3, "Buckets"). That is finer than SOHO's two buckets: the images of a batch
have neighbouring ratios, and at most one batch of a window has both landscapes and portraits, the squarest of
them. Images of one ratio keep the stream's random order, and so do those inside a batch.

What a window holds is a function of (seed, its number): every rank deals alike, for any number of them and
after a resume. Each place of the stream is dealt once; a window may lie across two epochs, as a global batch
may.

Legend: G groups a global batch, W batches a window, N = W G groups, fewer in an evaluation's last window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsvlp.data.frames import Framing
from dsvlp.data.partner import shuffled
from dsvlp.data.plan import Dealt, Groups, Stream
from dsvlp.seed import key_of


@dataclass(frozen=True)
class _Window:
    """Groups in the stream's order, their frames, and the order in which they are cut into batches, [N]."""

    number: int
    groups: Groups
    frames: np.ndarray | None
    order: np.ndarray


class Dealer:
    """Deals the global batches of a stream. Steps in order cost one look-up a window.

    Args:
        stream: where groups come from.
        framing: how large images become; None for a model of objects.
        batch: G.
        window: W, where images keep their aspect; 1 otherwise.
        seed: the batches of a window are shuffled by it.
        end: groups of an evaluation, whose last batch is filled and whose batches are not shuffled; None:
            the stream has no end.

    Attributes:
        by_aspect: whether images keep their aspect.
        window: W.
    """

    def __init__(
        self,
        stream: Stream,
        framing: Framing | None,
        batch: int,
        window: int,
        seed: int,
        end: int | None = None,
    ) -> None:
        self._stream, self._framing, self._batch = stream, framing, batch
        self.by_aspect = framing is not None and framing.longest is not None
        self.window = window if self.by_aspect else 1
        self._seed, self._end = seed, end
        self._open: _Window | None = None

    def at(self, step: int) -> Dealt:
        """Returns the global batch of a step, counted from 0; an evaluation's ends with `end`."""
        number, place = divmod(step, self.window)
        if self._open is None or self._open.number != number:
            self._open = self._look_up(number)
        window = self._open
        if self._end is None:
            place = int(shuffled(key_of(self._seed, number, "window"), "batches", self.window)[place])
        begin, count = place * self._batch, len(window.order)
        real = min(self._batch, count - begin)
        places = window.order[np.minimum(begin + np.arange(self._batch), count - 1)]
        places[:real].sort()
        return Dealt(window.groups.take(places), real, self._canvas(window, places))

    def _look_up(self, number: int) -> _Window:
        positions = np.arange(number * self.window * self._batch, (number + 1) * self.window * self._batch)
        if self._end is not None:
            positions = positions[positions < self._end]
        groups, frames, order = self._stream.at(positions), None, np.arange(len(positions))
        if self.by_aspect and self._framing is not None:
            sizes = self._stream.sizes(groups)
            frames = self._framing.frames(sizes)
            order = np.argsort(sizes[:, 1] / sizes[:, 0], kind="stable")
        return _Window(number, groups, frames, order)

    def _canvas(self, window: _Window, places: np.ndarray) -> tuple[int, int] | None:
        if self._framing is None:
            return None
        if window.frames is None:
            return self._framing.side, self._framing.side
        return self._framing.canvas(window.frames[places])
