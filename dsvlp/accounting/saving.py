"""How often to save, and what a time limit does to a run: arithmetic on seconds. Torch-free.

An interruption loses on average half an interval's work and a start; a save loses its stall. Young (1974)
and Daly (2006) give the interval at which both together are least.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dsvlp.accounting.assumptions import Assumptions
from dsvlp.accounting.memory import checkpoint_bytes
from dsvlp.errors import RecipeError
from dsvlp.recipe import Recipe

HOUR = 3600.0


@dataclass(frozen=True)
class Checkpointing:
    """Saves and interruptions.

    Attributes:
        bytes: of a checkpoint.
        stall_seconds: that a save keeps the step waiting: the copy of a process's share.
        between_interruptions_seconds: expected, for N GPUs.
        young_steps, daly_steps: the interval of least loss.
        steps: the recipe's interval.
        lost_share: of the time, at the recipe's interval: saves, work redone, starts.
        least_lost_share: the same at Daly's.
    """

    bytes: float
    stall_seconds: float
    between_interruptions_seconds: float
    young_steps: int
    daly_steps: int
    steps: int
    lost_share: float
    least_lost_share: float


@dataclass(frozen=True)
class Allocations:
    """What a time limit means: the run in pieces."""

    time_limit_hours: float
    steps_each: int
    requeues: int


def young(stall: float, between: float) -> float:
    """Returns the seconds between saves that lose least: sqrt(2 stall between) (Young, 1974)."""
    return math.sqrt(2 * stall * between)


def daly(stall: float, between: float) -> float:
    """Returns the same to a higher order (Daly, 2006, eq. 37)."""
    if stall >= 2 * between:
        return between
    share = stall / (2 * between)
    return young(stall, between) * (1 + math.sqrt(share) / 3 + share / 9) - stall


def lost_share(interval: float, stall: float, between: float, start: float) -> float:
    """Returns the share of time that saves, half an interval's work at each interruption, and starts take."""
    return min(1.0, stall / interval + (interval / 2 + start) / between)


def checkpointing(recipe: Recipe, world: int, step: float, assumed: Assumptions) -> Checkpointing:
    """Returns what saving costs and how often it pays."""
    size = checkpoint_bytes(recipe)
    stall = size / world / assumed.copy_bytes
    between = assumed.interruption_gpu_hours * HOUR / world
    best = daly(stall, between)
    mine = recipe.checkpoint.every_steps * step

    def lost(interval: float) -> float:
        return lost_share(interval, stall, between, assumed.start_seconds)

    return Checkpointing(
        size,
        stall,
        between,
        max(1, round(young(stall, between) / step)),
        max(1, round(best / step)),
        recipe.checkpoint.every_steps,
        lost(mine),
        lost(max(best, step)),
    )


def allocations(
    recipe: Recipe, limit_hours: float | None, step: float, assumed: Assumptions
) -> Allocations | None:
    """Returns the run cut by a time limit; None without one.

    Raises:
        RecipeError: the limit leaves no room for a checkpoint interval.
    """
    if limit_hours is None:
        return None
    usable = limit_hours * HOUR - assumed.start_seconds - assumed.stop_seconds
    each, every = math.floor(usable / step), recipe.checkpoint.every_steps
    if each < min(every, recipe.schedule.steps):
        most = f"checkpoint.every_steps of at most {each}" if each > 0 else "a longer --time-limit"
        raise RecipeError(
            f"a time limit of {limit_hours:g} h leaves {max(each, 0)} steps of {step:.3g} s beside start "
            f"and end, fewer than a checkpoint interval of {every}",
            most,
            "A job that dies before its first save would begin anew for ever",
        )
    return Allocations(limit_hours, each, math.ceil(recipe.schedule.steps / each) - 1)
