"""Scores as pure functions on NumPy arrays: no model, no file, no rank.

Legend: Q queries, C candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dsvlp.errors import RunError

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """A share of a count, with its 95% interval.

    Attributes:
        hits: how many.
        total: of how many.
        chance: what guessing would reach on average, where that is known.
    """

    hits: int
    total: int
    chance: float | None = None

    @property
    def value(self) -> float:
        """hits / total, 0 where there is nothing."""
        return self.hits / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval, which stays inside [0, 1] also at 0 and at all hits."""
        if not self.total:
            return 0.0, 1.0
        n, p, z = self.total, self.value, Z_95
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_json(self) -> dict[str, float | int | list[float]]:
        """Returns value, hits, total and interval, and chance where it is known."""
        out: dict[str, float | int | list[float]] = {
            "value": self.value,
            "hits": self.hits,
            "total": self.total,
            "interval_95": list(self.interval),
        }
        return out if self.chance is None else {**out, "chance": self.chance}


def best_ranks(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Returns the rank (0 the best) of each query's best relevant candidate, int64 [Q].

    Equal scores are ordered by the candidate's index, so that a model that scores everything alike
    gets chance on a diagonal, neither all nor nothing, on every machine.

    Args:
        scores: float [Q, C], higher is better.
        relevant: bool [Q, C], at least one True a row.

    Raises:
        RunError: a score is not a number, or a query has no relevant candidate.
    """
    if np.isnan(scores).any():
        raise RunError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN", "numbers")
    if not relevant.any(1).all():
        raise RunError(f"query {int(np.argmin(relevant.any(1)))} has no relevant candidate", "at least one")
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(relevant, order, 1).argmax(1)


def best_candidates(scores: np.ndarray, k: int) -> np.ndarray:
    """Returns bool [Q, C]: each query's first k candidates, equal scores ordered by index."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    out = np.zeros(scores.shape, bool)
    np.put_along_axis(out, order, True, 1)
    return out


def reranked(first: np.ndarray, second: np.ndarray, k: int) -> np.ndarray:
    """Returns scores [Q, C] that order each query's first k by `first` anew by `second`, before all others.

    Args:
        first: float [Q, C]; the others keep its order.
        second: float [Q, C], read at each query's first k only; equal ones keep the order of `first`.
        k: how many.

    Raises:
        RunError: a score among those read is not finite.
    """
    order = np.argsort(-first, axis=1, kind="stable")
    top = np.take_along_axis(second, order[:, :k], 1)
    if not np.isfinite(top).all():
        raise RunError(
            f"{int((~np.isfinite(top)).sum())} of {top.size} match scores are not finite", "numbers"
        )
    again = np.argsort(-top, axis=1, kind="stable")
    order[:, :k] = np.take_along_axis(order[:, :k], again, 1)
    out = np.empty(first.shape, np.float32)
    np.put_along_axis(out, order, -np.arange(first.shape[1], dtype=np.float32)[None], 1)
    return out


def recall_at(ranks: np.ndarray, k: int, chance: float | None = None) -> Share:
    """Returns the share of queries whose best relevant candidate is among the first k."""
    return Share(int((ranks < k).sum()), len(ranks), chance)


def chance_at(relevant: np.ndarray, k: int) -> float:
    """Returns R@k of a random order of the candidates, by the mask of the relevant ones [Q, C]."""
    candidates = relevant.shape[1]
    numbers, queries = np.unique(relevant.sum(1), return_counts=True)
    misses = [math.comb(candidates - int(n), k) / math.comb(candidates, min(k, candidates)) for n in numbers]
    return 1.0 - float(np.average(misses, weights=queries))


def retrieval(
    scores: np.ndarray,
    image_of_text: np.ndarray,
    scores_of_texts: np.ndarray | None = None,
    ks: tuple[int, ...] = (1, 5, 10),
) -> dict[str, Share]:
    """Returns TR (image to text) and IR (text to image) R@k of all pairs.

    Args:
        scores: float [images, texts].
        image_of_text: int [texts], row of the image that a text describes; every image has one.
        scores_of_texts: float [texts, images], where texts look for images by other scores.
        ks: cut-offs.
    """
    relevant = np.arange(len(scores))[:, None] == image_of_text[None]
    text_ranks = best_ranks(scores, relevant)
    image_ranks = best_ranks(scores.T if scores_of_texts is None else scores_of_texts, relevant.T)
    out = {f"TR@{k}": recall_at(text_ranks, k, chance_at(relevant, k)) for k in ks}
    return out | {f"IR@{k}": recall_at(image_ranks, k, chance_at(relevant.T, k)) for k in ks}


def first_of_each(groups: np.ndarray) -> np.ndarray:
    """Returns the ascending positions at which each value of `groups` appears first."""
    return np.sort(np.unique(groups, return_index=True)[1])
