"""Hard negatives for ITM: an image for each text and a text for each image, drawn by ITC's similarity.

FIBER, 2 (credited there to VLMo): the softmax of the similarities, the own pair left out, 1e-9 added,
one draw a direction. Pairs of the own image are matches and never drawn, unless the recipe says so.

From ITC's queue they are drawn twice: in one step those that are fetched (`draw_for_next`), by the next one
those that are judged, of its own batch and of what was fetched (`ask`, `dsvlp.objectives.pool`); without
that delay, see `dsvlp.objectives.at_once`.

Legend: P pairs of this rank, K columns: pairs of the batch, F fetched images and texts, C = K + F that
may be drawn, Q places of ITC's queue.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from dsvlp import seed
from dsvlp.objectives.contrast import Columns, columns, text_hash
from dsvlp.objectives.pool import EMPTY, Pool
from dsvlp.passes import Fused, Passes, Past, Similarity
from dsvlp.types import Batch, Fetched

Source = Literal["batch", "gathered", "queue"]

FLOOR = 1e-9


@dataclass(frozen=True)
class Side:
    """The images, or the texts, that may be drawn: the batch's pairs', then the fetched ones.

    Attributes:
        rows: int64 [C] image or text rows as `Passes.ask` numbers them.
        allowed: bool [P, C].
        keys: int64 [C] pair keys, of the fetched ones their samples.
        texts: int64 [C], equal where the texts are equal; of an image its own pair's.
    """

    rows: Tensor
    allowed: Tensor
    keys: Tensor
    texts: Tensor


@dataclass(frozen=True)
class Candidates:
    """What may be drawn.

    Attributes:
        columns: the batch's pairs.
        images: for each text.
        texts: for each image.
        same_image: other pairs of the own image may be drawn.
        places: int64 [F] the fetched ones' places in the pool, None where none was fetched.
    """

    columns: Columns
    images: Side
    texts: Side
    same_image: bool = False
    places: Tensor | None = None

    def others(self, rows: Tensor) -> Tensor:
        """Returns bool [P, N]: which of past pairs of image rows [N], negative if empty, may be drawn."""
        there = rows >= 0
        own = self.columns.mine(self.columns.images)
        return there.expand(len(own), -1) if self.same_image else there & (rows != own[:, None])


@dataclass(frozen=True)
class Drawn:
    """The negatives of a micro-batch: first each image with its negative text, then each text with its image.

    Attributes:
        pairs: int64 [2P, 2] (image row, text row) as `Passes.ask` numbers them.
        fused: the pass over them.
        hardness: float32 [2P], probability that ITC's softmax gives the drawn pair.
        false: bool [2P], the drawn pair's text equals the own one: it is no negative.
        fetched: bool [2P], it was not of the batch.
        there: bool [2P], False where what was drawn cannot be read: such a pair is not judged.
    """

    pairs: Tensor
    fused: Fused
    hardness: Tensor
    false: Tensor
    fetched: Tensor
    there: Tensor


def candidates(view: Batch, source: Source, same_image: bool = False) -> Candidates:
    """Returns what may be drawn: of the micro-batch, or of all ranks', who then must all call; with "queue"
    also of what was fetched for the view."""
    found = columns(view, source == "gathered")
    allowed = found.negatives(same_image)
    images, texts = (Side(rows, allowed, found.keys, found.texts) for rows in found.pairs.unbind(1))
    among = Candidates(found, images, texts, same_image)
    past = view.fetched
    if source != "queue" or past is None:
        return among
    captions, words = hashes(past)
    images = _longer(images, among.others(past.rows[:, 0]), past.samples[:, 0], len(view.images), captions)
    texts = _longer(texts, among.others(past.rows[:, 1]), past.samples[:, 1], len(view.text_ids), words)
    return replace(among, images=images, texts=texts, places=past.places)


def _longer(side: Side, allowed: Tensor, samples: Tensor, first: int, texts: Tensor) -> Side:
    """Returns a side with fetched images or texts: allowed [P, F], of samples [F], in rows from `first`."""
    rows = torch.arange(first, first + len(samples), device=samples.device)
    return Side(
        torch.cat((side.rows, rows)),
        torch.cat((side.allowed, allowed), 1),
        torch.cat((side.keys, samples)),
        torch.cat((side.texts, texts)),
    )


def hashes(past: Fetched) -> tuple[Tensor, Tensor]:
    """Returns int64 [F] each: equal where the images' own texts, or the texts, are equal."""
    return text_hash(past.caption_ids, past.caption_mask), text_hash(past.text_ids, past.text_mask)


def ask(passes: Passes, view: str, source: Source, among: Candidates, pool: Pool | None = None) -> Drawn:
    """Draws by `passes.similarity` and asks for the fused passes of the pairs drawn."""
    assert passes.similarity is not None, "ITC begins before ITM"
    found, images, texts = among.columns, among.images, among.texts
    to_text, to_image = _logits(passes.similarity, among, pool)
    keys = found.mine(found.keys)
    text, text_odds = draw(to_text, texts.allowed, keys, texts.keys, "itm.negative_text")
    image, image_odds = draw(to_image, images.allowed, keys, images.keys, "itm.negative_image")
    pairs = judged(found, images.rows[image], texts.rows[text])
    words = found.mine(found.texts)
    return Drawn(
        pairs,
        passes.ask(view, pairs, gathered=source == "gathered"),
        torch.cat((text_odds, image_odds)),
        torch.cat((texts.texts[text] == words, images.texts[image] == words)),
        torch.cat((text, image)) >= len(found.images),
        torch.ones_like(pairs[:, 0], dtype=torch.bool),
    )


def judged(found: Columns, images: Tensor, texts: Tensor) -> Tensor:
    """Returns int64 [2P, 2]: each own image with the text drawn for it, each own text with its image."""
    own_image, own_text = found.mine(found.pairs).unbind(1)
    return torch.stack((torch.cat((own_image, images)), torch.cat((texts, own_text))), 1)


def of_batch(similarity: Similarity, found: Columns) -> tuple[Tensor, Tensor]:
    """Returns float32 [P, K], image to text and text to image."""
    # ITC's columns may be those of all ranks where the candidates are this rank's own.
    begin = similarity.first - found.first
    seen = slice(begin, begin + len(found.images))
    return similarity.image_to_text[:, seen], similarity.text_to_image[:, seen]


def _logits(similarity: Similarity, among: Candidates, pool: Pool | None) -> tuple[Tensor, Tensor]:
    """Returns float32 [P, C], image to text and text to image; minus infinity at fetched ones not allowed."""
    to_text, to_image = of_batch(similarity, among.columns)
    if among.places is None:
        return to_text, to_image
    assert pool is not None and similarity.past is not None, "what is fetched is in the pool"
    past = similarity.past.logits(pool.image[among.places], pool.text[among.places])
    allowed = (side.allowed[:, -len(among.places) :] for side in (among.texts, among.images))
    text, image = (logits.masked_fill(~may, -torch.inf) for logits, may in zip(past, allowed, strict=True))
    return torch.cat((to_text, text), 1), torch.cat((to_image, image), 1)


def draw_for_next(past: Past, among: Candidates, pool: Pool) -> None:
    """Draws an image and a text of the queue for each own pair; the next step may draw from them."""
    others, keys = among.others(past.rows), among.columns.mine(among.columns.keys)
    image, _ = draw(past.text_to_image, others, keys, past.samples, "itm.fetched_image")
    text, _ = draw(past.image_to_text, others, keys, past.samples, "itm.fetched_text")
    both = torch.stack((image, text), 1)
    samples = torch.where(others.gather(1, both), past.samples[both], EMPTY)
    pool.remember(samples, past.image[image], past.text[text])


def draw(
    logits: Tensor, allowed: Tensor, keys: Tensor, column_keys: Tensor, purpose: str
) -> tuple[Tensor, Tensor]:
    """Returns one column a row, drawn by the softmax of its logits where allowed, and its probability.

    An exponential race (the Gumbel-max trick without logarithms of the weights): the noise of a row and
    a column is a function of their two keys, so the draw depends on no order, cut or rank.

    Args:
        logits: float32 [P, C], minus infinity where never.
        allowed: bool [P, C]; a row with none gets some column.
        keys, column_keys: int64 [P] and [C].
        purpose: the draw's name.

    Returns:
        int64 [P] columns and float32 [P], their probabilities by the softmax over all C.
    """
    odds = logits.softmax(1)
    uniform = seed.uniform(seed.fold(keys[:, None], column_keys), purpose, 1)[..., 0]  # [P, C]
    waiting = -torch.log(uniform + 2**-25)  # never 0, never infinite
    column = ((odds + FLOOR) * allowed / waiting).argmax(1)
    return column, odds.gather(1, column[:, None])[:, 0]
