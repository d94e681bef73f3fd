"""The members of a sweep."""

import random

import pytest

from dsvlp import recipe
from dsvlp.errors import RecipeError
from dsvlp.launch import members


def test_a_grid_has_every_combination_once_the_last_key_fastest():
    assert members.grid({"a": [1, 2], "b": ["x", "y", "z"]}) == [
        {"a": a, "b": b} for a in (1, 2) for b in ("x", "y", "z")
    ]
    assert members.grid({}) == [{}]


def test_draws_are_the_same_for_a_seed_and_different_among_themselves():
    spaces = {"lr": members.log_uniform(1e-4, 1e-2), "seed": [0, 1, 2], "decay": members.uniform(0.0, 0.1)}
    first = members.drawn(20, spaces, seed=3)
    assert first == members.drawn(20, spaces, seed=3) != members.drawn(20, spaces, seed=4)
    assert all(a != b for i, a in enumerate(first) for b in first[:i])
    assert all(1e-4 <= each["lr"] <= 1e-2 and 0 <= each["decay"] <= 0.1 for each in first)
    assert all(float(f"{each['lr']:.4g}") == each["lr"] for each in first)


def test_log_uniform_draws_each_decade_equally_often():
    draw, generator = members.log_uniform(1e-6, 1e-2), random.Random(0)
    below = sum(draw(generator) < 1e-4 for _ in range(2000)) / 2000
    assert 0.45 < below < 0.55


def test_more_members_than_there_are_different_ones_are_refused():
    with pytest.raises(RecipeError, match=r"gave 2 different members. Expected 3"):
        members.drawn(3, {"seed": [0, 1]})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.lr", 1e-05),
        ("optimizer.lr", 1),
        ("description", 'with "quotes" = and, \\ slashes'),
        ("description", "true"),
        ("optimizer.betas", [0.9, 0.95]),
        ("data.augment.flip", False),
        ("data.train", [{"path": "a b.beton", "weight": 2.0}]),
    ],
)
def test_every_kind_of_value_reaches_the_recipe_as_it_is(key, value):
    found = recipe.load("tiny_svl", members.overrides({key: value}))
    for part in key.split("."):
        found = getattr(found, part)
    if key == "data.train":
        found = [source.model_dump(exclude_none=True) for source in found]
    assert (list(found) if isinstance(found, tuple) else found) == value
