from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import pytest

from dsvlp import recipe
from dsvlp.data.loader import Loader
from dsvlp.data.mode import training_mode, validation_mode
from dsvlp.data.opened import Data, open_data
from dsvlp.errors import RecipeError
from tests.batches import make_recipe, make_semvlp_recipe


def _modes(schedule: str, *overrides: str, steps: int = 400) -> list[str | None]:
    made = make_semvlp_recipe(f"model.mode_schedule={schedule}", *overrides)
    return [training_mode(made, step) for step in range(steps)]


def test_halves_and_the_modes_alone_are_the_same_at_every_step() -> None:
    for schedule in ("halves", "single", "two"):
        assert set(_modes(schedule)) == {schedule}


def test_by_steps_the_modes_take_turns() -> None:
    assert _modes("step")[:4] == ["single", "two", "single", "two"]


def test_drawn_modes_are_half_and_half_without_a_pattern_and_depend_on_the_seed_alone() -> None:
    modes = _modes("bernoulli")
    assert abs(modes.count("single") - 200) < 40
    changes = sum(one != other for one, other in pairwise(modes))
    assert abs(changes - 200) < 40
    assert modes == _modes("bernoulli", "batch.micro_pairs=2", "engine.zero=zero3")
    assert modes != _modes("bernoulli", "seed=1")


def test_validation_reads_both_ways_unless_one_alone_is_trained() -> None:
    for schedule, mode in (("step", "halves"), ("bernoulli", "halves"), ("halves", "halves"), ("two", "two")):
        assert validation_mode(make_semvlp_recipe(f"model.mode_schedule={schedule}")) == mode


def test_other_models_have_no_mode() -> None:
    assert training_mode(make_recipe(), 3) is None and validation_mode(make_recipe()) is None


def test_an_odd_micro_batch_cannot_be_halved() -> None:
    odd = ("batch.global_pairs=9", "batch.micro_pairs=3")
    with pytest.raises(RecipeError, match="micro_pairs 3 must be even"):
        make_semvlp_recipe(*odd)
    assert recipe.micro_pairs(make_semvlp_recipe(*odd, "model.mode_schedule=two"), 1) == 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Data]:
    made = make_semvlp_recipe(
        "model.mode_schedule=bernoulli",
        "model.text.vocabulary=128",
        "objectives.mop.classes=49",
        "data.synthetic.images=24",
        "data.synthetic.image_size=64",
        "data.workers=0",
        "batch.micro_pairs=2",
    )
    with open_data(made, tmp_path_factory.mktemp("mode")) as opened:
        yield opened


def _loader(
    data: Data, rank: int = 0, world: int = 1, split: Literal["train", "evaluate"] = "train"
) -> Loader:
    return Loader(data.recipe, data.datasets, data.tokenizer, rank=rank, world=world, split=split)


def _read(loader: Loader, count: int) -> list[str | None]:
    with loader:
        return [next(loader).mode for _ in range(count)]


def test_the_loader_says_the_steps_mode_on_any_number_of_ranks_and_after_a_resume(data: Data) -> None:
    steps = [training_mode(data.recipe, step) for step in range(6)]
    assert set(steps) == {"single", "two"}
    for world in (1, 2, 4):  # 4, 2, 1 micro-batches a step
        for rank in range(world):
            found = _read(_loader(data, rank, world), 6 * 4 // world)
            assert found == [mode for mode in steps for _ in range(4 // world)]
    with _loader(data, world=2) as first:
        for _ in range(3 * 2):
            next(first)
        state = first.state_dict()
    again = _loader(data, world=2)
    again.load_state_dict(state)
    assert _read(again, 6) == [mode for mode in steps[3:] for _ in range(2)]
    assert set(_read(_loader(data, split="evaluate"), 4)) == {"halves"}
