"""The rows of `dsvlp bench step --parts`: each part of a step beside the least that it could take.

A floor is arithmetic over two measured rates: FLOPs of the part, on the texts' real tokens, over the rate
of a large matrix product; or bytes over that of a large copy or all-reduce. Torch-free.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dsvlp.accounting import flops
from dsvlp.engine.bench_figures import Figure, Repeat
from dsvlp.recipe import Recipe
from dsvlp.types import DataFacts

PART, FLOOR = "part/", "floor/"
COMMUNICATION = "communication"
WHOLE, UNEXPLAINED = "the whole step, its parts marked", "unexplained"

_TOWERS = ("image tower", "words", "text tower", "transformer", "fusion", "heads")
_ADAMW_BYTES = 28  # of a parameter: reads weight, gradient and two moments, writes all but the gradient
_LONG = {
    "data": "data wait",
    "prepare": "prepare: copy, corrupt, count",
    "forward": "engine, around the forward",
    "backward": "engine, before the first gradient",
    "gradients": "engine, behind the last gradient",
    "step": "optimizer",
}
_ORDER = (
    "data",
    "prepare",
    "forward",
    *_TOWERS,
    "backward",
    *(f"{part}, backward" for part in reversed(_TOWERS)),
    "recomputed",
    "gradients",
    "step",
    COMMUNICATION,
)


@dataclass(frozen=True)
class Rates:
    """What a device of this machine reaches at best.

    Attributes:
        matmul: FLOP/s of a large product in the recipe's precision.
        copy: bytes/s of memory, read and written.
        wire: bytes/s that a rank sends in a large all-reduce.
    """

    matmul: float
    copy: float
    wire: float


@dataclass(frozen=True)
class Marked:
    """What one process measured with its parts marked.

    Attributes:
        repeats: in their order.
        rates: of its device.
        sent: bytes that it sends in a step.
        updated: parameters that its optimizer updates; 0 without one.
    """

    repeats: list[Repeat]
    rates: Rates
    sent: float
    updated: int


def rows(recipe: Recipe, facts: DataFacts, ranks: Sequence[Marked]) -> list[Figure]:
    """Returns each part's time, ms of a step and process, floors, and the share of no part.

    Args:
        recipe: the recipe.
        facts: what is known of the data.
        ranks: each process's measurements.
    """
    repeats = list(zip(*(rank.repeats for rank in ranks), strict=True))
    found = {name for repeat in repeats for one in repeat for name in one.parts}
    order = [name for name in _ORDER if name in found] + sorted(found - set(_ORDER))
    floors, figures = _floors(recipe, facts, ranks), list[Figure]()
    for name in order:
        mean = [statistics.fmean(one.parts.get(name, 0.0) for one in repeat) for repeat in repeats]
        if any(mean):
            title = str(_LONG.get(name, name))
            figures.append(Figure(PART + title, "ms", [1e3 * value for value in mean]))
            if name in floors:
                figures.append(Figure(FLOOR + title, "ms", [1e3 * floors[name]]))
    whole = [statistics.fmean(one.wall for one in repeat) for repeat in repeats]
    rest = [statistics.fmean(one.wall - sum(one.parts.values()) for one in repeat) for repeat in repeats]
    shares = [100 * part / wall for part, wall in zip(rest, whole, strict=True)]
    return [
        *figures,
        Figure(PART + UNEXPLAINED, "ms", [1e3 * value for value in rest]),
        Figure(PART + WHOLE, "ms", [1e3 * value for value in whole]),
        Figure(f"{UNEXPLAINED}, share of the step", "%", shares),
        *_rates(ranks),
    ]


def _floors(recipe: Recipe, facts: DataFacts, ranks: Sequence[Marked]) -> dict[str, float]:
    """Returns part -> the least seconds a step could take for it, where there is arithmetic for it."""
    tokens = statistics.fmean(one.text_tokens for rank in ranks for one in rank.repeats)
    pairs = recipe.batch.global_pairs / len(ranks)
    matmul = statistics.fmean(rank.rates.matmul for rank in ranks)
    costs = dict.fromkeys(_TOWERS, 0.0)
    for name, cost in flops.components(recipe, text_tokens=tokens, facts=facts).items():
        costs[name if name in costs else "fusion"] += cost.forward * pairs / matmul
    floors = costs | {f"{name}, backward": 2 * seconds for name, seconds in costs.items()}
    floors["data"] = 0.0
    floors["step"] = statistics.fmean(_ADAMW_BYTES * rank.updated / rank.rates.copy for rank in ranks)
    floors[COMMUNICATION] = statistics.fmean(rank.sent / rank.rates.wire for rank in ranks)
    return floors


def _rates(ranks: Sequence[Marked]) -> list[Figure]:
    rates = [rank.rates for rank in ranks]
    figures = [
        Figure("rate of a large matrix product, a process", "GFLOP/s", [r.matmul / 1e9 for r in rates]),
        Figure("rate of a large copy, read and written, a process", "GB/s", [r.copy / 1e9 for r in rates]),
    ]
    if len(ranks) > 1:
        sent, wire = [rank.sent / 1e9 for rank in ranks], [r.wire / 1e9 for r in rates]
        figures.append(Figure("sent by a process in a step", "GB", sent))
        figures.append(Figure("sent by a process in a large all-reduce", "GB/s", wire))
    return figures
