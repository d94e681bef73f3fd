"""Zero-shot image-text retrieval by ITM scores of all pairs (SVL, Tables II and III).

Each image and each text is encoded once; only the fusion runs for every pair. Images stay with the
rank that read them, texts are gathered; each rank scores its images with all texts, in chunks of
which every rank runs equally many (ZeRO-3 would wait for ever otherwise).

Legend: I images of this rank, C texts of all ranks, L text tokens, N image tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dsvlp import dist
from dsvlp.engine.evaluate import Forward, Progress, evaluating, silent
from dsvlp.errors import RunError
from dsvlp.passes import select
from dsvlp.system import ImageRequest, MatchRequest, TextRequest
from dsvlp.tasks.scores import Share, first_of_each, retrieval
from dsvlp.types import Batch, States

Captions = Literal["first", "all"]


@dataclass(frozen=True)
class ScoreMatrix:
    """ITM scores of all pairs of a data set.

    Attributes:
        scores: float32 [images, texts], match logit.
        image_of_text: int64 [texts], row of `scores` that the text describes.
        image_rows: int64 [images], the data set's image rows, ascending.
        samples: int64 [texts], the data set's samples, ascending.
    """

    scores: np.ndarray
    image_of_text: np.ndarray
    image_rows: np.ndarray
    samples: np.ndarray

    def recalls(self, captions: Captions) -> dict[str, Share]:
        """Returns TR@k and IR@k with each image's first caption alone, or with all."""
        if captions == "all":
            return retrieval(self.scores, self.image_of_text)
        first = first_of_each(self.image_of_text)
        return retrieval(self.scores[:, first], self.image_of_text[first])


@dataclass(frozen=True)
class _Texts:
    """Texts on the CPU: ids and mask [., L], and what they are: int64 [., 2] (sample, image row)."""

    ids: Tensor
    mask: Tensor
    names: Tensor


def score_all_pairs(
    engine: Forward,
    batches: Iterable[Batch],
    chunk_pairs: int,
    captions: Captions = "all",
    progress: Progress = silent,
) -> ScoreMatrix:
    """Returns the scores of every image with every text. Every rank must call, with equally many batches.

    Args:
        engine: forwards go through it.
        batches: this rank's share, one pass; pairs of weight 0 are left out.
        chunk_pairs: pairs fused at once.
        captions: "first" scores only each image's first caption, at a fraction of the cost.
        progress: called at each chunk.

    Raises:
        RunError: there is no batch.
    """
    with evaluating(engine):
        images, rows, own_texts = _read(engine, batches, progress)
        texts = _gathered(own_texts, captions)
        text_states = _encode_texts(engine, texts, chunk_pairs, progress)
        mine = _first_owner(rows)
        local = _score(engine, select(images, mine.to(engine.device)), text_states, chunk_pairs, progress)
    return _assemble(local, rows[mine], texts.names.numpy(), engine.device)


def _read(engine: Forward, batches: Iterable[Batch], progress: Progress) -> tuple[States, Tensor, _Texts]:
    """Returns this rank's image states [I, N, D], their data set rows int64 [I], and its texts.

    An image that comes with several captions is kept once.
    """
    tokens, masks, rows, texts = [], [], [], []
    known: set[int] = set()
    for number, batch in enumerate(batches):
        progress(f"retrieval, images {number}")
        texts.append(_own_texts(batch))
        states = engine(ImageRequest(batch.images.to(engine.device), _moved(batch.image_mask, engine.device)))
        first = {row: index for index, row in reversed(list(_counted_rows(batch))) if row not in known}
        known |= first.keys()
        new = sorted(first.values())
        tokens.append(states.tokens[new])
        masks.append(states.mask[new])
        assert batch.rows is not None
        rows.append(batch.rows[new])
    if not rows:
        raise RunError("the data for retrieval holds no batch", "at least one pair")
    joined = _Texts(*(torch.cat(parts) for parts in zip(*texts, strict=True)))
    return States(torch.cat(tokens), torch.cat(masks)), torch.cat(rows), joined


def _moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def _counted_rows(batch: Batch) -> Iterator[tuple[int, int]]:
    """Yields (image index, data set row) of the images that a pair of weight above 0 names."""
    assert batch.rows is not None
    rows = batch.rows.tolist()
    for index in batch.pairs[batch.weight > 0, 0].unique().tolist():
        yield index, rows[index]


def _own_texts(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (ids, mask, names) of the texts of the pairs that count."""
    assert batch.samples is not None and batch.rows is not None
    counts = batch.weight > 0
    images, rows = batch.pairs[counts].unbind(1)
    names = torch.stack([batch.samples[counts], batch.rows[images]], 1)
    return batch.text_ids[rows], batch.text_mask[rows], names


def _gathered(own: _Texts, captions: Captions) -> _Texts:
    """Returns all ranks' texts, or each image's first, ascending by sample. Every rank must call."""
    everyone = dist.gather_objects([own.ids.numpy(), own.mask.numpy(), own.names.numpy()])
    ids, mask, names = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*everyone, strict=True))
    order = names[:, 0].argsort(stable=True)
    if captions == "first":
        order = order[torch.from_numpy(first_of_each(names[order, 1].numpy()))]
    return _Texts(ids[order], mask[order], names[order])


def _encode_texts(engine: Forward, texts: _Texts, chunk: int, progress: Progress) -> States:
    """Returns the states of all texts [C, L, D], of which each rank encodes a share. Every rank must call."""
    share = -(-len(texts.ids) // dist.world_size())
    at = torch.arange(dist.rank() * share, (dist.rank() + 1) * share).clamp(max=len(texts.ids) - 1)
    tokens = []
    for number, part in enumerate(at.split(chunk)):
        progress(f"retrieval, texts {number}")
        request = TextRequest(texts.ids[part].to(engine.device), texts.mask[part].to(engine.device))
        tokens.append(engine(request).tokens)
    everyone = dist.all_gather(torch.cat(tokens)).flatten(0, 1)[: len(texts.ids)]  # [C, L, D]
    return States(everyone, texts.mask.to(engine.device))


def _first_owner(rows: Tensor) -> Tensor:
    """Returns the positions of this rank's images that no lower rank has as well. Every rank must call."""
    everyone = dist.gather_objects(rows.tolist())
    lower = {row for others in everyone[: dist.rank()] for row in others}
    return torch.tensor([i for i, row in enumerate(rows.tolist()) if row not in lower], dtype=torch.int64)


def _most(count: int, device: torch.device) -> int:
    """Returns the largest count of all ranks. Every rank must call."""
    return int(dist.all_reduce_max(torch.tensor([count], device=device)).item())


def _score(engine: Forward, images: States, texts: States, chunk: int, progress: Progress) -> np.ndarray:
    """Returns float32 [I, C], the match logits of this rank's images with all texts. Every rank must call."""
    images_count, texts_count = len(images.tokens), len(texts.tokens)
    total = images_count * texts_count
    chunks = -(-_most(total, engine.device) // chunk)
    if not images_count:  # a rank without images still takes part in every forward
        images = States(
            images.tokens.new_zeros(1, *images.tokens.shape[1:]),
            images.mask.new_ones(1, *images.mask.shape[1:]),
        )
    out = torch.zeros(chunks * chunk, device=engine.device)
    for number in range(chunks):
        progress(f"retrieval, pairs {number} of {chunks}")
        at = torch.arange(number * chunk, (number + 1) * chunk, device=engine.device)
        flat = at.clamp(max=max(total - 1, 0))
        request = MatchRequest(select(images, flat // texts_count), select(texts, flat % texts_count))
        out[at] = engine(request)[1].float()
    return out[:total].view(images_count, texts_count).cpu().numpy()


def _assemble(local: np.ndarray, rows: Tensor, names: np.ndarray, device: torch.device) -> ScoreMatrix:
    """Returns the matrix of all ranks' images, ascending by image row. Every rank must call."""
    most = _most(len(local), device)
    padded = np.zeros((most, local.shape[1]), np.float32)
    padded[: len(local)] = local
    all_scores = dist.all_gather(torch.from_numpy(padded).to(device)).cpu().numpy()
    all_rows = [np.array(part, np.int64) for part in dist.gather_objects(rows.tolist())]
    joined = np.concatenate([part[: len(own)] for part, own in zip(all_scores, all_rows, strict=True)])
    image_rows = np.concatenate(all_rows)
    order = image_rows.argsort()
    image_of_text = np.searchsorted(image_rows[order], names[:, 1])
    return ScoreMatrix(joined[order], image_of_text, image_rows[order], names[:, 0])
