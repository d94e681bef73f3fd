from __future__ import annotations

from itertools import pairwise

import pytest

from dsvlp.engine.schedule import factor, warmup_steps
from dsvlp.recipe import Schedule

DECAYS = ("linear", "cosine", "constant")


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 997])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
def test_it_rises_to_one_once_and_never_again(decay: str, steps: int, warmup: float) -> None:
    schedule = Schedule.model_validate({"steps": steps, "warmup": warmup, "decay": decay})
    values = [factor(schedule, step) for step in range(steps)]
    peak = warmup_steps(schedule)
    assert values[peak] == 1.0 and max(values) == 1.0 and min(values) > 0
    assert all(a < b for a, b in pairwise(values[: peak + 1]))
    assert all(a >= b for a, b in pairwise(values[peak:]))


def test_warm_up_is_linear() -> None:
    schedule = Schedule(steps=100, warmup=0.1)
    rise = [factor(schedule, s + 1) - factor(schedule, s) for s in range(10)]
    assert rise == pytest.approx([1 / 11] * 10)


@pytest.mark.parametrize(("decay", "end"), [("linear", 0.0), ("cosine", 0.0), ("constant", 1.0)])
def test_it_ends_one_past_the_last_step(decay: str, end: float) -> None:
    schedule = Schedule.model_validate({"steps": 50, "warmup": 0.1, "decay": decay})
    assert factor(schedule, 50) == pytest.approx(end, abs=1e-12)
    assert factor(schedule, 51) == pytest.approx(end, abs=1e-12)
    middle = (warmup_steps(schedule) + 50) / 2
    assert factor(schedule, round(middle)) == pytest.approx((1 + end) / 2, abs=0.05)


def test_the_rate_is_a_tenth_after_each_drop() -> None:
    schedule = Schedule(steps=40, warmup=0.1, decay="steps", drops=(0.625, 0.875))
    values = [factor(schedule, step) for step in range(40)]
    assert values[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert values[4:] == [1.0] * 21 + [0.1] * 10 + [0.01] * 5


@pytest.mark.parametrize("keys", [{"decay": "steps"}, {"drops": (0.5,)}])
def test_drops_go_with_the_decay_by_steps(keys: dict) -> None:
    with pytest.raises(ValueError, match="drops goes with decay = 'steps'"):
        Schedule(steps=40, **keys)
