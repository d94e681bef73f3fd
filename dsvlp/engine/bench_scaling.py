"""From steps measured on 1, 2, ... processes to the rows of `dsvlp bench scaling`. Torch-free.

Two ways to grow. **Same global batch**: more processes share the same work; a step should take 1 / N.
**Same batch a process**: each brings its own; a step should take as long. Efficiency is the rate of a
process over that of one alone, which has the same threads. Communication holds the waiting for slower
processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from dsvlp.engine.bench_figures import Figure
from dsvlp.engine.bench_parts import COMMUNICATION, PART, WHOLE
from dsvlp.recipe import Recipe

Mode = Literal["same global batch", "same batch a process"]
MODES: tuple[Mode, ...] = ("same global batch", "same batch a process")

Place = tuple[Mode, int]
"""How the batch grows, and on how many processes."""


def counts(most: int) -> list[int]:
    """Returns the numbers of processes to measure: the powers of two below `most`, and it."""
    return [*(1 << power for power in range(most.bit_length()) if 1 << power < most), most]


def overrides(recipe: Recipe, mode: Mode, processes: int) -> list[str]:
    """Returns the `key=value` that a recipe needs on so many processes."""
    if mode == "same global batch" or processes == 1:
        return []
    sizes = {"global_pairs": recipe.batch.global_pairs, "contrastive_pairs": recipe.batch.contrastive_pairs}
    return [f"batch.{key}={size * processes}" for key, size in sizes.items() if size is not None]


def figures(results: Mapping[Place, dict[str, Any]]) -> list[Figure]:
    """Returns the rows of the table, of results of `dsvlp bench step --parts` that took turns.

    Args:
        results: one for each place, one process of each mode among them.
    """
    rows = []
    for (mode, processes), result in results.items():
        rate, alone = _values(result, "pairs"), _values(results[mode, 1], "pairs")
        whole, wire = _values(result, PART + WHOLE), _values(result, PART + COMMUNICATION)
        name = f"{mode}, {processes} process{'es' if processes > 1 else ''}"
        efficiency = [100 * many / one / processes for many, one in zip(rate, alone, strict=True)]
        shares = [100 * part / step for part, step in zip(wire or [0.0] * len(whole), whole, strict=True)]
        rows += [
            Figure(f"{name}: step", "ms", _values(result, "whole step")),
            Figure(f"{name}: pairs", "pairs/s", rate),
            Figure(f"{name}: efficiency", "%", efficiency),
            Figure(f"{name}: communication, share of the step", "%", shares),
        ]
    return rows


def _values(result: dict[str, Any], name: str) -> list[float]:
    """Returns a row's values, a turn each; none where the result lacks it."""
    found = next((figure for figure in result["figures"] if figure["name"] == name), None)
    return [] if found is None else [float(value) for value in found["values"]]
