"""What a micro-batch holds beside its images: texts tokenised, pairs, keys, labels.

Legend: I = G images, k captions each, P = I k pairs, T texts, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsvlp.data.answers import Answers
from dsvlp.data.plan import Groups, Plan, Stream
from dsvlp.data.sources import Sources
from dsvlp.data.text import Tokenizer
from dsvlp.types import Batch


@dataclass(frozen=True)
class Texts:
    """How texts become ids.

    Attributes:
        tokenizer: the tokenizer.
        max_length: L.
        swap: whether each pair also brings its partner's text.
    """

    tokenizer: Tokenizer
    max_length: int
    swap: bool


class PairBuilder:
    """Makes micro-batches of images that another has made. One thread calls it.

    Args:
        sources: the data sets, in the stream's order.
        stream: gives the keys.
        texts: tokenizer and lengths.
        answers: draws the pairs' labels; None where no objective asks for them.
    """

    def __init__(
        self, sources: Sources, stream: Stream, texts: Texts, answers: Answers | None = None
    ) -> None:
        self._sources, self._stream, self._texts, self._answers = sources, stream, texts, answers

    def batch(self, plan: Plan, **images: Any) -> Batch:
        """Returns the micro-batch of a plan; `images` are the fields that come from its images."""
        groups = plan.groups
        count, k = groups.samples.shape
        pairs = torch.arange(count * k)
        ids, mask, special = self._encode(plan)
        samples = self._sources.sample_numbers(groups.source[:, None], groups.samples)
        return Batch(
            **images,
            text_ids=ids,
            text_mask=mask,
            special_mask=special,
            pairs=torch.stack([pairs // k, pairs], 1),
            partner=pairs + count * k if self._texts.swap else pairs,
            matched=torch.from_numpy(plan.matched.copy()),
            weight=torch.from_numpy(groups.weight.reshape(-1).copy()),
            image_keys=torch.from_numpy(self._stream.image_keys(groups)),
            pair_keys=torch.from_numpy(self._stream.pair_keys(groups)),
            labels=self._labels(groups),
            samples=torch.from_numpy(samples.reshape(-1)),
            rows=torch.from_numpy(self._sources.row_numbers(groups.source, groups.rows)),
        )

    def told(self, groups: Groups) -> list[str]:
        """Returns all that the pairs say of their images: their own texts, with the answers of questions."""
        texts = self._own_texts(groups)
        if self._answers is None:
            return texts
        answers = self._sources.answers(*_pairs(groups))
        return [" ".join((text, *(a for a, _ in given))) for text, given in zip(texts, answers, strict=True)]

    def _encode(self, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        """Returns ids, mask and special mask [T, L]: the pairs' own texts, then their partners'."""
        texts = self._own_texts(plan.groups)
        if self._texts.swap:
            texts += self._sources.texts(plan.partner_source, plan.partner_sample)
        ids, mask, special = self._texts.tokenizer.encode(texts, self._texts.max_length)
        return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(special)

    def _labels(self, groups: Groups) -> Tensor | None:
        """Returns int64 [P], the classes of the pairs' own answers, -1 where there is none."""
        if self._answers is None:
            return None
        keys = self._stream.pair_keys(groups)
        return torch.from_numpy(self._answers.labels(self._sources.answers(*_pairs(groups)), keys))

    def _own_texts(self, groups: Groups) -> list[str]:
        return self._sources.texts(*_pairs(groups))


def _pairs(groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """Returns the source and the sample of each pair, int64 [P] both."""
    return np.repeat(groups.source, groups.samples.shape[1]), groups.samples.reshape(-1)
