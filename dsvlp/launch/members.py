"""Which members a sweep has: every combination, a list, or draws. A member maps recipe keys to values."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dsvlp.errors import RecipeError

Member = dict[str, Any]
Draw = Callable[[random.Random], Any]


def grid(values: Mapping[str, Sequence[Any]]) -> list[Member]:
    """Returns every combination; the last key changes fastest."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def drawn(count: int, spaces: Mapping[str, Sequence[Any] | Draw], seed: int = 0) -> list[Member]:
    """Returns different members, the same for the same seed.

    Args:
        count: how many.
        spaces: key -> the values to choose from, or a draw such as `log_uniform(1e-4, 1e-2)`.
        seed: of the draws.

    Raises:
        RecipeError: there are not so many different members.
    """
    generator, members = random.Random(seed), []
    for _ in range(100 * count):
        member = {
            key: space(generator) if callable(space) else generator.choice(space)
            for key, space in spaces.items()
        }
        if member not in members:
            members.append(member)
        if len(members) == count:
            return members
    raise RecipeError(
        f"{100 * count} draws gave {len(members)} different members",
        f"{count}",
        "Ask for fewer, or use grid()",
    )


def uniform(low: float, high: float) -> Draw:
    """Returns a draw between two numbers, to four digits."""
    return lambda generator: _rounded(generator.uniform(low, high))


def log_uniform(low: float, high: float) -> Draw:
    """Returns a draw whose logarithm is uniform, to four digits: for learning rates."""
    return lambda generator: _rounded(math.exp(generator.uniform(math.log(low), math.log(high))))


def overrides(member: Member) -> list[str]:
    """Returns a member as `key=value` arguments."""
    return [f"{key}={_toml(value)}" for key, value in member.items()]


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
