"""Hard negatives of the batch and of ITC's whole queue, judged in the step that draws them (FIBER, 2).

As the official code, which keeps the queue's raw images on the GPU: one draw a direction of the local batch
and the filled part of the queue, encoded again with the current weights. Here the queue holds names, so
the step waits on the host: what was drawn is read, decoded and tokenised meanwhile. No state is left.

Legend: P pairs of this rank, K of its batch, Q places of the queue.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsvlp.objectives.hard_negatives import Candidates, Drawn, Side, draw, hashes, judged, of_batch
from dsvlp.objectives.pool import EMPTY
from dsvlp.passes import Passes, Past


@dataclass(frozen=True)
class Picked:
    """What each pair drew in one direction.

    Attributes:
        column: int64 [P] column of the batch, 0 where it is of the queue.
        odds: float32 [P], its probability by ITC's softmax.
        queued: bool [P], it is of the queue.
        samples: int64 [P] in the data set, `EMPTY` where it is of the batch.
    """

    column: Tensor
    odds: Tensor
    queued: Tensor
    samples: Tensor

    def merged(self, batch: Tensor, fetched: Tensor) -> Tensor:
        """Returns one value [P] a pair, of the batch's [K] or of what was fetched in its place [P]."""
        return torch.where(self.queued, fetched, batch[self.column])


def ask(passes: Passes, view: str, among: Candidates) -> Drawn:
    """Draws by `passes.similarity`, fetches what is of the queue, and asks for the fused passes.

    Each pair has a place for the image and one for the text that it drew of the queue, empty where they are
    of the batch: every rank encodes equally many.
    """
    similarity = passes.similarity
    assert similarity is not None and similarity.past is not None, "ITC begins before ITM, with its queue"
    past, found, batch = similarity.past, among.columns, passes.view(view)
    to_text, to_image = of_batch(similarity, found)
    text = pick(to_text, past.image_to_text, among.texts, among, past, "itm.negative_text")
    image = pick(to_image, past.text_to_image, among.images, among, past, "itm.negative_image")
    fetched = passes.fetch(view, torch.stack((image.samples, text.samples), 1))
    places = torch.arange(len(image.samples), device=image.samples.device)
    images = image.merged(among.images.rows, places + len(batch.images))
    texts = text.merged(among.texts.rows, places + len(batch.text_ids))
    pairs = judged(found, images, texts)
    captions, words = hashes(fetched)
    own = found.mine(found.texts)
    return Drawn(
        pairs,
        passes.ask(view, pairs),
        torch.cat((text.odds, image.odds)),
        torch.cat((text.merged(found.texts, words) == own, image.merged(found.texts, captions) == own)),
        torch.cat((text.queued, image.queued)),
        # A bad image's place comes back empty; texts are always there.
        torch.cat((torch.ones_like(text.queued), ~image.queued | (fetched.rows[:, 0] >= 0))),
    )


def pick(batch: Tensor, queue: Tensor, side: Side, among: Candidates, past: Past, purpose: str) -> Picked:
    """Draws one of the batch's or of the queue's columns for each pair.

    Args:
        batch, queue: float32 [P, K] and [P, Q] logits of the pairs with either's.
        side: what of the batch may be drawn.
        among, past: the batch's pairs and the queue's.
        purpose: the draw's name.
    """
    size, found = batch.shape[1], among.columns
    logits = torch.cat((batch, queue.masked_fill(past.rows < 0, -torch.inf)), 1)  # noise is never drawn
    allowed = torch.cat((side.allowed, among.others(past.rows)), 1)
    places = torch.arange(len(past.rows), device=batch.device)
    column, odds = draw(logits, allowed, found.mine(found.keys), torch.cat((side.keys, places)), purpose)
    of_queue = column >= size
    samples = past.samples[(column - size).clamp(min=0)]
    # A step that is not finite may draw what is not allowed; it changes nothing, but must not fetch it.
    queued = of_queue & allowed.gather(1, column[:, None])[:, 0]
    return Picked(torch.where(of_queue, 0, column), odds, queued, torch.where(queued, samples, EMPTY))
