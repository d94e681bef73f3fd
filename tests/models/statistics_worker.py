"""One of two ranks: BatchNorm's statistics after a step, and after a save; rank 0 writes them: `two FILE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsvlp import dist
from dsvlp.engine.zero import Engine, join
from dsvlp.launch.local import leave
from dsvlp.system import TrainRequest, build
from tests.batches import make_batch, make_facts, make_pixelbert_recipe, take_pairs


def statistics(system: nn.Module) -> dict[str, list[float]]:
    return {
        name: buffer.double().flatten().tolist()
        for name, buffer in system.named_buffers()
        if name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }


def one_process(kind: str) -> dict[str, list[float]]:
    """Returns the statistics of one process that sees the whole batch at once."""
    recipe = make_pixelbert_recipe(f"model.image.batch_norm={kind}")
    system = build(recipe, make_facts()).train()
    system(TrainRequest(system.prepare(make_batch(image_size=128))))
    return statistics(system)


def two_ranks(kind: str) -> dict[str, Any]:
    """Returns each rank's statistics after a recomputed step and after a save, by rank."""
    recipe = make_pixelbert_recipe(
        f"model.image.batch_norm={kind}", "batch.micro_pairs=4", "engine.activation_checkpointing=full"
    )
    engine = Engine(build(recipe, make_facts()), recipe, accumulation=1)
    engine.train()
    step(engine)
    before = dist.gather_objects(statistics(engine.system))
    engine.fragments()
    after = dist.gather_objects(statistics(engine.system))
    skipped = dist.gather_objects(through_a_bad_batch(engine))
    engine.close()
    return {"before": before, "after": after, "skipped": skipped}


def step(engine: Engine, pixel: float | None = None) -> bool:
    """Trains on this rank's half of a batch, the last rank's first pixel as given; returns `finite`."""
    batch = take_pairs(make_batch(image_size=128), range(4 * dist.rank(), 4 * dist.rank() + 4))
    if pixel is not None and dist.rank() == 1:
        batch.images[0, 0, 0, 0] = pixel
    losses = engine(TrainRequest(engine.system.prepare(batch)))
    engine.backward(torch.stack([loss.sum for loss in losses.values()]).sum())
    return bool(engine.step(1.0).finite)


def through_a_bad_batch(engine: Engine) -> dict[str, bool]:
    """Returns whether the state is as it was after an infinite pixel, and whether the next step moves it."""

    def state() -> dict[str, Tensor]:
        return {f"{f.name} {f.state}": f.tensor.clone() for f in engine.fragments()}

    before, finite = state(), step(engine, float("inf"))
    after, next_finite = state(), step(engine)
    moved = state()
    return {
        "finite": finite,
        "untouched": all(torch.equal(before[name], after[name]) for name in before),
        "next_finite": next_finite and all(bool(tensor.isfinite().all()) for tensor in moved.values()),
        "weights_move": any(not torch.equal(after[n], moved[n]) for n in after if n.endswith(" weight")),
        "statistics_move": any(not torch.equal(after[n], moved[n]) for n in after if n.endswith(" buffer")),
    }


if __name__ == "__main__":
    join(120)
    results = {
        kind: {"whole": one_process("train"), **two_ranks(kind)} for kind in ("frozen", "train", "sync")
    }
    if dist.rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(results))
    dist.barrier(60)
    leave(0)  # libraries have been seen to abort in their exit handlers
