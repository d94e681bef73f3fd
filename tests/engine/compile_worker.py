"""One rank of the test of compiled blocks under ZeRO: `compile_worker.py steps FOLDER`.

Rank 0 writes FOLDER/steps.json. The graphs are traced and differentiated, and run by torch's own kernels:
dropout is that of plain blocks.
"""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import torch

from dsvlp import dist
from dsvlp.engine import dsconfig, zero
from dsvlp.engine.step import Step, summary
from dsvlp.launch.local import leave
from dsvlp.system import build
from tests.batches import make_batch, make_facts, make_recipe

PAIRS = 8


def apart(folder: Path) -> None:
    """Lets layouts be read from a folder, where stage 2 does not overlap."""
    shutil.copytree(dsconfig.layouts_folder(), folder / "ds_configs", dirs_exist_ok=True)
    path = folder / "ds_configs" / "zero2.json"
    layout = json.loads(path.read_text())
    layout["zero_optimization"]["overlap_comm"] = False
    path.write_text(json.dumps(layout))
    dsconfig._PACKAGE = folder


def steps(zero_: str, *overrides: str) -> list[dict[str, float]]:
    """Returns losses and metrics of three steps of two micro-batches."""
    sizes = (f"batch.global_pairs={2 * PAIRS * dist.world_size()}", f"batch.micro_pairs={PAIRS}")
    recipe = make_recipe(*sizes, "model.text.dropout=0.1", f"engine.zero={zero_}", *overrides)
    system = build(recipe, make_facts())
    engine = zero.Engine(system, recipe, accumulation=2)
    engine.train()
    runner = Step(engine, system, recipe, 2)
    names = list(system.objectives)
    losses = []
    for number in (1, 2, 3):
        seeds = (10 * number + 2 * micro + dist.rank() for micro in range(2))
        batches = [make_batch(PAIRS, seed=seed) for seed in seeds]
        output = runner.run(number, batches, 1.0, stop=False)
        losses.append(summary(output, names, dict.fromkeys(names, 1.0)))
    engine.close()
    return losses


if __name__ == "__main__":
    zero.join(120)
    place = Path(sys.argv[2])
    apart(place / f"rank-{dist.rank()}")
    torch.compile = partial(torch.compile, backend="aot_eager")
    results = {}
    for precision, layouts in {"fp32": ("zero0", "zero1", "zero2"), "bf16": ("zero1",)}.items():
        results[f"plain {precision}"] = steps("zero1", f"engine.precision={precision}")
        for layout in layouts:
            chosen = (f"engine.precision={precision}", "engine.compile=true")
            recomputed = ("engine.activation_checkpointing=selective",) if layout == "zero1" else ()
            results[f"{layout} {precision}"] = steps(layout, *chosen, *recomputed)
    results["graphs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    if dist.rank() == 0:
        (place / "steps.json").write_text(json.dumps(results))
    dist.barrier(60)
    leave(0)  # libraries have been seen to abort in their exit handlers
