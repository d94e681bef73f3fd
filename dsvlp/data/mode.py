"""How a model of two readings takes a step's pairs: a function of the recipe, the seed and the step alone.

So it is the same on all ranks, for any number of them, and after a resume.
"""

from __future__ import annotations

import numpy as np

from dsvlp.recipe import Recipe, SemVLPModel
from dsvlp.seed import key_of, uniform
from dsvlp.types import Mode


def training_mode(recipe: Recipe, step: int) -> Mode | None:
    """Returns the mode of a training step, counted from 0; None for a model of one reading."""
    if not isinstance(recipe.model, SemVLPModel):
        return None
    schedule = recipe.model.mode_schedule
    if schedule == "step":
        return "two" if step % 2 else "single"
    if schedule == "bernoulli":
        (draw,) = uniform(np.array([key_of(recipe.seed, step)]), "semvlp.mode", 1)[0]
        return "two" if draw < 0.5 else "single"
    return schedule


def validation_mode(recipe: Recipe) -> Mode | None:
    """Returns the mode of validation: both, unless one alone is trained; None for a model of one reading."""
    if not isinstance(recipe.model, SemVLPModel):
        return None
    schedule = recipe.model.mode_schedule
    return schedule if schedule in ("single", "two") else "halves"
