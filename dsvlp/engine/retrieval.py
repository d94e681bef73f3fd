"""Zero-shot image-text retrieval: by ITC's similarities, by ITM's scores, or by both (FIBER, 4.2).

Each image and each text is encoded once below the fusion. A system with ITC compares unit vectors,
one product for all pairs; the best few of each query are then ranked again by ITM, whose fusion is
what costs. FIBER's official code scores every pair by ITM, and so does SVL (Tables II and III): that
is `matches()` without a choice of pairs.

Images stay with the rank that read them, texts are gathered. Each rank fuses its own images with the
texts that are asked for, in chunks of which every rank runs equally many (ZeRO-3 would wait for ever
otherwise).

Legend: I images of this rank, C texts of all ranks, L text tokens, N image tokens, D width, V the
unit vectors' width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dsvlp import dist
from dsvlp.engine.evaluate import Forward, Progress, evaluating, silent
from dsvlp.errors import RunError
from dsvlp.passes import joined, select
from dsvlp.system import EmbedRequest, ImageRequest, MatchRequest, TextRequest
from dsvlp.tasks.scores import Share, best_candidates, first_of_each, reranked, retrieval
from dsvlp.types import Batch, States

Captions = Literal["first", "all"]


@dataclass(frozen=True)
class Names:
    """What the rows and columns of a score matrix are.

    Attributes:
        image_of_text: int64 [texts], row of the matrix that the text describes.
        image_rows: int64 [images], the data set's image rows, ascending.
        samples: int64 [texts], the data set's samples, ascending.
    """

    image_of_text: np.ndarray
    image_rows: np.ndarray
    samples: np.ndarray

    def columns(self, captions: Captions) -> np.ndarray:
        """Returns the texts that take part: each image's first caption alone, or all."""
        if captions == "all":
            return np.arange(len(self.samples))
        return first_of_each(self.image_of_text)

    def recalls(self, scores: np.ndarray, captions: Captions) -> dict[str, Share]:
        """Returns TR@k and IR@k of scores [images, texts]."""
        columns = self.columns(captions)
        return retrieval(scores[:, columns], self.image_of_text[columns])

    def candidates(self, similarities: np.ndarray, captions: Captions, k: int) -> np.ndarray:
        """Returns bool [images, texts]: the pairs that `recalls_reranked` reads, at most k a query."""
        columns = self.columns(captions)
        part = similarities[:, columns]
        out = np.zeros(similarities.shape, bool)
        out[:, columns] = best_candidates(part, k) | best_candidates(part.T, k).T
        return out

    def recalls_reranked(
        self, similarities: np.ndarray, matches: np.ndarray, captions: Captions, k: int
    ) -> dict[str, Share]:
        """Returns TR@k and IR@k where each query's first k by similarity are ordered by match score."""
        columns = self.columns(captions)
        first, second = similarities[:, columns], matches[:, columns]
        by_image, by_text = reranked(first, second, k), reranked(first.T, second.T, k)
        return retrieval(by_image, self.image_of_text[columns], by_text)


@dataclass(frozen=True)
class _Texts:
    """Texts on the CPU: ids and mask [., L], and what they are: int64 [., 2] (sample, image row)."""

    ids: Tensor
    mask: Tensor
    names: Tensor


class Gallery:
    """A data set's images and texts, encoded once. Every rank must call every method.

    Memory on each rank's device: its own share of the images, I x N x D, and the texts of all ranks,
    C x L x D, both as the forward leaves them (at most float32: 1.2 MB an image and 0.12 MB a text for FIBER
    at 384 pixels and 40 tokens); with ITC C x V more. On the host, on each rank: a float32 matrix
    [images, texts] a score.

    Args:
        engine: forwards go through it.
        batches: this rank's share, one pass, equally many on all ranks; pairs of weight 0 are left out.
        chunk_pairs: pairs fused, and rows encoded or embedded, at once.
        captions: "first" keeps only each image's first caption, at a fraction of the cost.
        progress: called at each chunk.

    Attributes:
        names: what rows and columns of the matrices are.

    Raises:
        RunError: there is no batch.
    """

    def __init__(
        self,
        engine: Forward,
        batches: Iterable[Batch],
        chunk_pairs: int,
        captions: Captions = "all",
        progress: Progress = silent,
    ) -> None:
        self._engine, self._chunk, self._progress = engine, chunk_pairs, progress
        with evaluating(engine):
            images, rows, own_texts = _read(engine, batches, progress)
            texts = _gathered(own_texts, captions)
            mine = _first_owner(rows)
            self._images = select(images, mine.to(engine.device))
            self._own_text_states = self._encoded_share(texts)
            tokens = self._of_all_shares(self._own_text_states.tokens, len(texts.ids))
            self._texts = States(tokens, texts.mask.to(engine.device))
        everyone = [np.array(part, np.int64) for part in dist.gather_objects(rows[mine].tolist())]
        self._counts = [len(part) for part in everyone]
        every_row = np.concatenate(everyone)
        self._order = every_row.argsort()
        image_rows = every_row[self._order]
        names = texts.names.numpy()
        self.names = Names(np.searchsorted(image_rows, names[:, 1]), image_rows, names[:, 0])

    def similarities(self) -> np.ndarray:
        """Returns ITC's cosines of all pairs, float32 [images, texts]."""
        engine = self._engine
        with evaluating(engine):
            images = self._embedded(self._images, lambda part: engine(EmbedRequest(image=part))[0], "images")
            share = self._embedded(
                self._own_text_states, lambda part: engine(EmbedRequest(text=part))[1], "texts"
            )
            texts = self._of_all_shares(share, len(self._texts.tokens))  # [C, V]
        return self._assembled((images @ texts.T).cpu().numpy())

    def matches(self, wanted: np.ndarray | None = None) -> np.ndarray:
        """Returns ITM's match logits, float32 [images, texts].

        Args:
            wanted: bool [images, texts], equal on all ranks: the pairs to score, the rest become minus
                infinity; None: all.
        """
        rows, columns = self._wanted_here(wanted)
        chunks = -(-_most(len(rows), self._engine.device) // self._chunk)
        images = self._images if len(self._images.tokens) else _one_of_nothing(self._images)
        out = torch.zeros(chunks * self._chunk)
        at = torch.zeros(2, chunks * self._chunk, dtype=torch.int64)  # the rest: pair (0, 0) again and again
        at[0, : len(rows)], at[1, : len(rows)] = rows, columns
        with evaluating(self._engine):
            for number, (some, pairs) in enumerate(
                zip(out.split(self._chunk), at.split(self._chunk, 1), strict=True)
            ):
                self._progress(f"retrieval, pairs {number} of {chunks}")
                image, text = pairs.to(self._engine.device)
                request = MatchRequest(select(images, image), select(self._texts, text))
                some.copy_(self._engine(request)[1].float())
        local = torch.full((len(self._images.tokens), len(self._texts.tokens)), -torch.inf)
        local[rows, columns] = out[: len(rows)]
        return self._assembled(local.numpy())

    def _wanted_here(self, wanted: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """Returns the asked pairs of this rank's images: int64 rows of them, and columns."""
        own = len(self._images.tokens)
        if wanted is None:
            count = len(self._texts.tokens)
            at = torch.arange(own * count)
            return at // max(count, 1), at % max(count, 1)
        start = sum(self._counts[: dist.rank()])
        places = self._order.argsort()[start : start + own]  # where this rank's images stand in the matrix
        rows, columns = np.nonzero(wanted[places])
        return torch.from_numpy(rows), torch.from_numpy(columns)

    def _encoded_share(self, texts: _Texts) -> States:
        """Returns the states of the share of all texts that this rank encodes, filled by the last."""
        share = -(-len(texts.ids) // dist.world_size())
        at = torch.arange(dist.rank() * share, (dist.rank() + 1) * share).clamp(max=len(texts.ids) - 1)
        tokens = []
        for number, part in enumerate(at.split(self._chunk)):
            self._progress(f"retrieval, texts {number}")
            device = self._engine.device
            tokens.append(
                self._engine(TextRequest(texts.ids[part].to(device), texts.mask[part].to(device))).tokens
            )
        return States(torch.cat(tokens), texts.mask[at].to(self._engine.device))

    def _of_all_shares(self, share: Tensor, count: int) -> Tensor:
        return dist.all_gather(share).flatten(0, 1)[:count]

    def _embedded(self, states: States, embed: Callable[[States], Tensor], what: str) -> Tensor:
        """Returns unit vectors of all rows, float32 [., V], after equally many forwards on every rank."""
        count = len(states.tokens)
        chunks = -(-_most(count, self._engine.device) // self._chunk)
        rows = states if count else _one_of_nothing(states)
        vectors = []
        for number in range(chunks):
            self._progress(f"retrieval, vectors of {what} {number} of {chunks}")
            begin = min(number * self._chunk, max(count - 1, 0))  # the last row again, where others have more
            at = torch.arange(begin, max(min(begin + self._chunk, count), 1), device=self._engine.device)
            vectors.append(embed(select(rows, at)).float())
        return torch.cat(vectors)[:count]

    def _assembled(self, local: np.ndarray) -> np.ndarray:
        """Returns the matrix of all ranks' images in the order of `names`."""
        device = self._engine.device
        padded = np.zeros((max(self._counts), local.shape[1]), np.float32)
        padded[: len(local)] = local
        parts = dist.all_gather(torch.from_numpy(padded).to(device)).cpu().numpy()
        images = np.concatenate([part[:count] for part, count in zip(parts, self._counts, strict=True)])
        out: np.ndarray = images[self._order]
        return out


def _one_of_nothing(states: States) -> States:
    """Returns one row of zeros like those of `states`: a rank without rows takes part in every forward."""
    tokens, mask = states.tokens, states.mask
    return States(tokens.new_zeros(1, *tokens.shape[1:]), mask.new_ones(1, *mask.shape[1:]))


def _read(engine: Forward, batches: Iterable[Batch], progress: Progress) -> tuple[States, Tensor, _Texts]:
    """Returns this rank's image states [I, N, D], their data set rows int64 [I], and its texts.

    An image that comes with several captions is kept once.
    """
    images, rows, texts = [], [], []
    known: set[int] = set()
    for number, batch in enumerate(batches):
        progress(f"retrieval, images {number}")
        texts.append(_own_texts(batch))
        states = engine(ImageRequest(batch.images.to(engine.device), _moved(batch.image_mask, engine.device)))
        first = {row: index for index, row in reversed(list(_counted_rows(batch))) if row not in known}
        known |= first.keys()
        new = sorted(first.values())
        images.append(select(states, torch.tensor(new, dtype=torch.int64, device=engine.device)))
        assert batch.rows is not None
        rows.append(batch.rows[new])
    if not rows:
        raise RunError("the data for retrieval holds no batch", "at least one pair")
    own_texts = _Texts(*(torch.cat(parts) for parts in zip(*texts, strict=True)))
    return joined(images), torch.cat(rows), own_texts


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


def _first_owner(rows: Tensor) -> Tensor:
    """Returns the positions of this rank's images that no lower rank has as well. Every rank must call."""
    everyone = dist.gather_objects(rows.tolist())
    lower = {row for others in everyone[: dist.rank()] for row in others}
    return torch.tensor([i for i, row in enumerate(rows.tolist()) if row not in lower], dtype=torch.int64)


def _most(count: int, device: torch.device) -> int:
    """Returns the largest count of all ranks. Every rank must call."""
    return int(dist.all_reduce_max(torch.tensor([count], device=device)).item())
