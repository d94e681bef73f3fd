"""Which numbers of processes can share a recipe's batch, from one to thousands. Torch-free."""

from __future__ import annotations

from dsvlp.errors import RecipeError
from dsvlp.recipe import Recipe, accumulation

SHOWN = 12  # valid sizes that a message names


def valid_worlds(recipe: Recipe) -> list[int]:
    """Returns all numbers of processes that the batch can be shared by, ascending.

    Each takes whole micro-batches: those of `batch.micro_pairs`, or its share of `batch.contrastive_pairs`
    in whole groups of captions.
    """
    batch = recipe.batch
    most = batch.contrastive_pairs or batch.global_pairs // (batch.micro_pairs or 1)
    return [world for world in _divisors(most) if _is_valid(recipe, world)]


def check_world(recipe: Recipe, world: int) -> None:
    """Raises `RecipeError` where the batch cannot be shared; the nearest valid numbers are named."""
    if _is_valid(recipe, world):
        return
    valid = valid_worlds(recipe)
    near = sorted(sorted(valid, key=lambda size: abs(size - world))[:SHOWN])
    batch = recipe.batch
    key = "micro_pairs" if batch.contrastive_pairs is None else "contrastive_pairs"
    raise RecipeError(
        f"{world} GPUs cannot share batch.global_pairs {batch.global_pairs} with batch.{key} "
        f"{batch.micro_pairs or batch.contrastive_pairs}",
        f"{'one of' if len(near) == len(valid) else 'near it'} {', '.join(map(str, near))}",
        f"Change --nodes, --gpus or batch.{key}",
    )


def _is_valid(recipe: Recipe, world: int) -> bool:
    try:
        accumulation(recipe, world)
    except RecipeError:
        return False
    return True


def _divisors(number: int) -> list[int]:
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})
