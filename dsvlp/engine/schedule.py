"""The learning rate as a pure function of the step: nothing to save, nothing to restore. Torch-free."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsvlp.recipe import Schedule


def warmup_steps(schedule: Schedule) -> int:
    """Returns how many steps rise; at least one step stays for the decay."""
    return min(round(schedule.warmup * schedule.steps), schedule.steps - 1)


def factor(schedule: Schedule, step: int) -> float:
    """Returns the share of the peak learning rate at a step.

    Rises linearly from 1/(w+1) at step 0 over the w warm-up steps, is 1 at step w, and then falls to
    0 at step `schedule.steps`, one past the last (linear or cosine), stays (constant), or is divided by 10
    after each share of the run that `drops` names (steps).

    Args:
        schedule: the recipe's table.
        step: 0 .. steps-1, the optimizer step about to be made; skipped steps count.
    """
    warmup = warmup_steps(schedule)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.decay == "constant":
        return 1.0
    if schedule.decay == "steps":
        passed = sum(step >= round(share * schedule.steps) for share in schedule.drops)
        return 1 / 10**passed
    done = min(1.0, (step - warmup) / (schedule.steps - warmup))
    return 1.0 - done if schedule.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
