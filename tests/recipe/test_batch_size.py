import pytest

from dsvlp.errors import RecipeError
from dsvlp.recipe import accumulation, micro_pairs
from tests.batches import make_fiber_recipe

GATHERED = ("batch.global_pairs=48", "batch.micro_pairs=false", "batch.contrastive_pairs=24")


def test_a_contrastive_batch_is_shared_out_and_takes_the_place_of_the_micro_batch() -> None:
    recipe = make_fiber_recipe(*GATHERED, "data.captions_per_image=2", "objectives.itm.negatives=gathered")
    assert [(micro_pairs(recipe, n), accumulation(recipe, n)) for n in (1, 2, 4, 12)] == [
        (24, 2),
        (12, 2),
        (6, 2),
        (2, 2),
    ]


@pytest.mark.parametrize("world", [5, 8, 24])
def test_other_numbers_of_processes_are_refused_with_the_valid_ones(world: int) -> None:
    recipe = make_fiber_recipe(*GATHERED, "data.captions_per_image=2", "objectives.itm.negatives=gathered")
    with pytest.raises(RecipeError, match=r"one of \[1, 2, 3, 4, 6, 12\] processes"):
        micro_pairs(recipe, world)


def test_a_share_of_one_image_is_refused_where_negatives_come_from_it() -> None:
    recipe = make_fiber_recipe(*GATHERED, "data.captions_per_image=2")
    assert micro_pairs(recipe, 6) == 4
    with pytest.raises(RecipeError, match=r"one of \[1, 2, 3, 4, 6\] processes"):
        micro_pairs(recipe, 12)


@pytest.mark.parametrize("overrides", [GATHERED[:2], (GATHERED[0], GATHERED[2])])
def test_micro_batch_and_contrastive_batch_exclude_each_other(overrides: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError, match="one of the two"):
        make_fiber_recipe(*overrides)
