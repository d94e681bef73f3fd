"""One rank: trains small systems under three ZeRO stages; rank 0 writes the losses: `THEME,... FILE`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from dsvlp import dist
from dsvlp.engine.zero import Engine
from dsvlp.launch.local import leave
from dsvlp.recipe import Recipe
from dsvlp.system import TrainRequest, build
from dsvlp.types import Batch
from tests.batches import (
    make_batch,
    make_facts,
    make_fiber_recipe,
    make_objects,
    make_pixelbert_recipe,
    make_recipe,
    make_semvlp_recipe,
    take_pairs,
)

# Wide enough that ZeRO-3 partitions the matrices and does not keep them as small.
SVL = (
    "model.image.width=320",
    "model.text.width=320",
    "model.text.vocabulary=400",
    "model.text.feed_forward=640",
    "batch.micro_pairs=4",
    "engine.precision=fp32",
)
FIBER = (
    "model.image_size=32",
    "model.image.width=160",
    "model.image.depths=[1, 2]",
    "model.image.heads=[4, 8]",
    "model.text.width=320",
    "model.text.layers=2",
    "model.text.vocabulary=400",
    "model.text.feed_forward=640",
    "model.fusion.plan=[[2, 0, 0], [2, 1, 1]]",
    "batch.micro_pairs=4",
    "engine.precision=fp32",
)
PIXELBERT = (
    "model.image.batch_norm=sync",
    "model.pixels=3",
    "model.positions=learned",
    "model.text.width=320",
    "model.text.vocabulary=400",
    "model.text.feed_forward=640",
    "batch.micro_pairs=4",
)
SEMVLP = (
    "model.mode_schedule=step",
    "model.text.width=320",
    "model.text.vocabulary=400",
    "model.text.feed_forward=640",
    "batch.micro_pairs=4",
    "engine.precision=fp32",
)


def recipe_of(theme: str, zero: str) -> Recipe:
    """Returns a small system's recipe: "svl", "fiber", "pixelbert" or "semvlp"."""
    if theme == "semvlp":
        return make_semvlp_recipe(f"engine.zero={zero}", *SEMVLP)
    if theme == "pixelbert":
        return make_pixelbert_recipe(f"engine.zero={zero}", *PIXELBERT)
    if theme == "fiber":
        return make_fiber_recipe(f"engine.zero={zero}", *FIBER)
    return make_recipe(f"engine.zero={zero}", *SVL, objectives=("itm", "mlm", "segl", "ssul", "spl"))


def batches_of(theme: str) -> tuple[Batch, Batch]:
    """Returns this rank's halves of the batches that steps take by turns: of SemVLP one in each mode."""
    half = 8 // dist.world_size()
    rows = range(dist.rank() * half, dist.rank() * half + half)
    if theme == "semvlp":
        made = take_pairs(make_objects(), rows)
        return replace(made, mode="single"), replace(made, mode="two")
    made = take_pairs(make_batch(image_size=128 if theme == "pixelbert" else 32), rows)
    return made, made


def train(theme: str, zero: str, checkpointing: str) -> list[dict[str, float]]:
    """Returns the normalised losses of four steps, summed over ranks."""
    recipe = recipe_of(theme, zero)
    system = build(recipe, make_facts())
    system.model.set_activation_checkpointing(checkpointing)
    engine = Engine(system, recipe, accumulation=1)
    engine.train()
    both = [system.prepare(batch) for batch in batches_of(theme)]
    names = list(system.objectives)
    out = []
    for prepared in (*both, *both):
        counts = dist.all_reduce_sum(prepared.counts(names))
        losses = engine(TrainRequest(prepared))
        sums = torch.stack([losses[name].sum for name in names])
        engine.backward((sums / counts).sum() * dist.world_size())
        engine.step(1e-3 / recipe.optimizer.lr)
        values = dist.all_reduce_sum(sums.detach().clone()) / counts
        out.append(dict(zip(names, values.tolist(), strict=True)))
    engine.close()
    return out


if __name__ == "__main__":
    runs = (("zero1", "none"), ("zero2", "none"), ("zero3", "full"))
    results = {
        theme: {zero: train(theme, zero, mode) for zero, mode in runs} for theme in sys.argv[1].split(",")
    }
    if dist.rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(results))
    dist.barrier(60)
    leave(0)  # libraries have been seen to abort in their exit handlers
