"""Questions to a trained model: does it tell a true pair from a random one, and, of the synthetic world,
does it read relations, does it look at the picture?

Legend: P pairs, L text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dsvlp import dist, seed
from dsvlp.data.synthetic import RelationPair
from dsvlp.data.text import Tokenizer
from dsvlp.engine.evaluate import Forward, Progress, evaluating, silent
from dsvlp.objectives.mlm import MLM, MLMTargets
from dsvlp.passes import select
from dsvlp.system import ImageRequest, MatchRequest, Prepared, TextRequest, TrainRequest
from dsvlp.tasks.scores import Share
from dsvlp.types import Batch

ImagesOf = Callable[[Sequence[RelationPair]], tuple[Tensor, Tensor | None]]
"""Returns the images of pairs as evaluation sees them, and their mask, on the CPU."""


def match_accuracy(engine: Forward, batches: Iterable[Batch], progress: Progress = silent) -> Share:
    """Returns how often ITM's logit has the right sign: each image with its own text, and with the next
    image's. The same question to every system, whatever negatives it was trained on; chance is a half.

    Every rank must call, with equally many batches. A pair whose next image is the same does not count
    as a mismatch.

    Args:
        engine: forwards go through it.
        batches: this rank's share, one pass; the captions of an image lie side by side.
        progress: called at each micro-batch.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=engine.device)  # right, all
    with evaluating(engine):
        for number, batch in enumerate(batches):
            progress(f"matching {number}")
            batch = batch.to(engine.device)
            assert batch.rows is not None
            images, own = batch.pairs.unbind(1)
            image = select(engine(ImageRequest(batch.images, batch.image_mask)), images)
            text = engine(TextRequest(batch.text_ids[own], batch.text_mask[own]))
            following = torch.arange(len(own), device=own.device).roll(-(len(own) // len(batch.images)))
            another = batch.rows[images] != batch.rows[images[following]]
            for partner, matched, weight in (
                (torch.arange(len(own), device=own.device), True, batch.weight),
                (following, False, batch.weight * batch.weight[following] * another),
            ):
                logits = engine(MatchRequest(image, select(text, partner)))[1]
                sums += torch.stack([(((logits > 0) == matched) * weight).sum(), weight.sum()])
    right, count = (round(value) for value in dist.all_reduce_sum(sums).tolist())
    return Share(right, count, 0.5)


def relation_accuracy(
    engine: Forward,
    pairs: Sequence[RelationPair],
    tokenizer: Tokenizer,
    images_of: ImagesOf,
    max_length: int,
    chunk: int = 50,
    progress: Progress = silent,
) -> Share:
    """Returns how often a picture matches its true caption better than one with one relation word changed.

    Chance is a half; equal scores count as wrong. Every rank measures all pairs.

    Args:
        engine: forwards go through it.
        pairs: held-out pictures, each with a true and a false caption.
        tokenizer: the run's.
        images_of: makes their images.
        max_length: L.
        chunk: pairs at once.
        progress: called at each chunk.
    """
    hits = 0
    with evaluating(engine):
        for start in range(0, len(pairs), chunk):
            progress(f"relation probe {start}")
            part = pairs[start : start + chunk]
            images, seen = images_of(part)
            seen = None if seen is None else seen.to(engine.device)
            states = engine(ImageRequest(images.to(engine.device), seen))
            scores = []
            for texts in ([pair.true for pair in part], [pair.false for pair in part]):
                ids, mask, _ = (
                    torch.from_numpy(a).to(engine.device) for a in tokenizer.encode(texts, max_length)
                )
                rows = torch.arange(len(part), device=engine.device)
                request = MatchRequest(select(states, rows), engine(TextRequest(ids, mask)))
                scores.append(engine(request)[1])
            hits += int((scores[0] > scores[1]).sum())
    return Share(hits, len(pairs), 0.5)


@dataclass(frozen=True)
class WordAccuracy:
    """MLM's accuracy at chosen words, with the picture and with mean grey in its place."""

    with_picture: Share
    without_picture: Share


def single_tokens(words: Iterable[str], tokenizer: Tokenizer) -> list[int]:
    """Returns the ids of the words that are one token."""
    ids, mask, _ = tokenizer.encode(list(words), 4)
    return [int(row[1]) for row, real in zip(ids, mask, strict=True) if real.sum() == 3]


def word_accuracy(
    engine: Forward, mlm: MLM, batches: Iterable[Batch], word_ids: Sequence[int], progress: Progress = silent
) -> WordAccuracy:
    """Returns how often MLM names one hidden word of each caption, among `word_ids` where it stands there.

    Every rank must call, with equally many batches; captions without such a word do not count.

    Args:
        engine: forwards go through it; of a system whose only objective is `mlm`.
        mlm: names the view and the mask's id.
        batches: this rank's share, one pass.
        word_ids: the ids of the words to hide.
        progress: called at each micro-batch.
    """
    hits = torch.zeros(3, dtype=torch.float64, device=engine.device)  # with, without, all
    wanted = torch.tensor(sorted(word_ids), device=engine.device)
    with evaluating(engine):
        for number, batch in enumerate(batches):
            progress(f"word probe {number}")
            view, targets = hide_one_word(batch.to(engine.device), wanted, mlm.facts.mask_id)
            for index, images in enumerate((view.images, torch.zeros_like(view.images))):
                prepared = Prepared({mlm.view: replace(view, images=images)}, {"mlm": targets})
                correct, count = engine(TrainRequest(prepared))["mlm"].metrics["accuracy"]
                hits[index] += correct
            hits[2] += count
    counted = [round(value) for value in dist.all_reduce_sum(hits).tolist()]
    return WordAccuracy(Share(counted[0], counted[2]), Share(counted[1], counted[2]))


def hide_one_word(batch: Batch, wanted: Tensor, mask_id: int) -> tuple[Batch, MLMTargets]:
    """Returns the batch with one of the wanted words of each own text hidden, drawn by the pair's key.

    Args:
        batch: on the device.
        wanted: int64 ids.
        mask_id: what stands there instead.
    """
    rows = batch.pairs[:, 1]
    ids, length = batch.text_ids[rows], batch.text_ids.shape[1]
    candidates = torch.isin(ids, wanted)  # [P, L]
    draw = seed.uniform(batch.pair_keys, "probe.word", length)
    position = torch.where(candidates, draw, -1.0).argmax(1)  # [P]
    own = torch.arange(len(rows), device=rows.device)
    weight = (candidates.any(1) & (batch.weight > 0)).float()
    hidden = ids.clone()
    hidden[own, position] = torch.where(weight > 0, mask_id, ids[own, position])
    view = replace(
        batch,
        text_ids=hidden,
        text_mask=batch.text_mask[rows],
        special_mask=batch.special_mask[rows],
        pairs=torch.stack([batch.pairs[:, 0], own], 1),
        partner=own,
    )
    return view, MLMTargets(weight.sum(), own * length + position, ids[own, position], weight)
