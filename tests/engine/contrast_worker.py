"""One rank of the contrast's tests: `contrast_worker.py THEMES FOLDER`.

Rank 0 writes FOLDER/THEME-WORLD.json. Real optimizer steps of a tiny FIBER over made-up global batches
of 16 pairs, which ranks and micro-batches cut as the loader does.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dsvlp import dist, recipe
from dsvlp.engine import zero
from dsvlp.engine.checkpoint import CheckpointStore
from dsvlp.engine.evaluate import evaluate
from dsvlp.engine.step import Step, StepOutput, summary
from dsvlp.engine.texts import longest
from dsvlp.launch.local import leave
from dsvlp.system import build
from dsvlp.types import Batch
from tests.batches import make_batch, make_facts, make_fiber_recipe, take_pairs
from tests.engine.test_texts import padded
from tests.engine.zero_worker import digest, save

GLOBAL = 16
GATHERED = ("batch.contrastive_pairs=8", "batch.micro_pairs=false", "objectives.itm.negatives=gathered")
BASE = (
    f"batch.global_pairs={GLOBAL}",
    "data.captions_per_image=2",
    "objectives.itc.queue=24",
    "optimizer.clip_norm=0",
    # Wide enough that ZeRO-3 partitions the larger matrices and does not keep them as small.
    "model.text.feed_forward=3200",
)


def global_batch(step: int) -> Batch:
    """Returns a step's pairs; some of its images were in the step before, one pair has no weight."""
    made = make_batch(GLOBAL, captions=2, partners=False, image_size=64, seed=step)
    weight = made.weight.clone()
    weight[step] = 0
    return replace(made, rows=made.rows + 6 * step, samples=made.samples + 12 * step, weight=weight)


class Run:
    """Optimizer steps on this rank, and what they leave."""

    def __init__(self, *overrides: str, seed: int = 0) -> None:
        self.recipe = make_fiber_recipe(*BASE, *overrides, f"seed={seed}")
        self.micro = recipe.micro_pairs(self.recipe, dist.world_size())
        self.accumulation = recipe.accumulation(self.recipe, dist.world_size())
        self.system = build(self.recipe, make_facts())
        self.engine = zero.Engine(self.system, self.recipe, accumulation=self.accumulation)
        self.engine.train()
        self.runner = Step(self.engine, self.system, self.recipe, self.accumulation)

    def batches(self, step: int) -> list[Batch]:
        whole, out = global_batch(step), []
        for number in range(self.accumulation):
            begin = (number * dist.world_size() + dist.rank()) * self.micro
            out.append(take_pairs(whole, range(begin, begin + self.micro)))
        return out

    def step(self, number: int, lr: float, poisoned: bool = False) -> StepOutput:
        batches = self.batches(number)
        if poisoned and dist.rank() == dist.world_size() - 1:
            batches[-1] = replace(batches[-1], images=batches[-1].images * float("nan"))
        return self.runner.run(number, batches, lr / self.recipe.optimizer.lr, stop=False)

    def losses(self, output: StepOutput) -> dict[str, float]:
        names = list(self.system.objectives)
        return summary(output, names, dict.fromkeys(names, 1.0))

    def queue(self) -> dict[str, Any]:
        queue = self.system.objectives["itc"].queue  # type: ignore[union-attr]
        return {name: buffer.tolist() for name, buffer in queue.named_buffers()}  # type: ignore[union-attr]

    def temperature(self) -> float:
        return float(dict(self.engine.weights())["objectives.itc.temperature"])


def read_newest(folder: Path, engine: zero.Engine) -> None:
    store = CheckpointStore(folder)
    checkpoint = store.load()
    assert checkpoint is not None
    engine.restore(checkpoint.reader)
    store.close()


def gradients(folder: Path) -> dict[str, Any]:
    """Two steps that change no weight: the second one's gradients are with the first one's queue."""
    run, seen = Run("engine.zero=zero0", *GATHERED), {}
    before_update = run.engine.step

    def look(factor: float) -> zero.StepResult:
        named = run.system.named_parameters()
        seen.update({key: p.grad.flatten().tolist() for key, p in named if p.grad is not None})
        return before_update(factor)

    run.engine.step = look  # type: ignore[method-assign,assignment]
    outputs = [run.step(number, lr=0.0) for number in (1, 2)]
    out = {"losses": [run.losses(o) for o in outputs], "gradients": dict(seen), "queue": run.queue()}
    weights = dict.fromkeys(run.system.objectives, 1.0)
    out["held out"] = evaluate(run.engine, run.system, run.batches(3), weights)
    run.engine.close()
    return out


class Uneven(Run):
    """The last rank's texts are short, all are padded to 24 tokens."""

    def batches(self, step: int) -> list[Batch]:
        made = [padded(batch, 24) for batch in super().batches(step)]
        if dist.rank() < dist.world_size() - 1:
            return made
        near = torch.arange(24) < 6
        return [replace(batch, text_mask=batch.text_mask & near) for batch in made]


def lengths(folder: Path) -> dict[str, Any]:
    """A step with each rank's own longest text, of full length, cut as all agree, and cut in bf16."""
    sizes = ("model.text.max_length=24", "model.text.positions=32", "engine.zero=zero0", *GATHERED)
    cases = {"full": (), "cut": ("engine.cut_texts=true",)}
    cases["bf16"] = (*cases["cut"], "engine.precision=bf16")
    out: dict[str, Any] = {}
    for name, more in cases.items():
        run = Uneven(*sizes, *more)
        out["longest"] = dist.gather_objects([longest(batch) for batch in run.batches(1)])
        found = run.step(1, 0.1)
        out[name] = {"losses": run.losses(found), "norm": float(found.grad_norm)}
        run.engine.close()
    return out


def queues(folder: Path) -> dict[str, Any]:
    """The queue after two steps that change no weight, however the batch is cut."""
    cuts = {"gathered": GATHERED, "local 8": ("batch.micro_pairs=8",), "local 4": ("batch.micro_pairs=4",)}
    out: dict[str, Any] = {}
    for name, overrides in cuts.items():
        run = Run("engine.zero=zero1", *overrides)
        for number in (1, 2):
            run.step(number, lr=0.0)
        every = dist.gather_objects(run.queue())
        out[name] = {**every[0], "same on all ranks": all(one == every[0] for one in every)}
        run.engine.close()
    return out


def resume(folder: Path) -> dict[str, Any]:
    """Four steps = two, save, fresh engine, two, bit for bit; a poisoned step changes nothing."""
    out: dict[str, Any] = {}
    for layout, moves in (("zero1", "step"), ("zero3", "step"), ("zero1", "micro_step")):
        overrides = (f"engine.zero={layout}", f"objectives.itc.queue_moves={moves}", *GATHERED)
        case, run = f"{layout}-{moves}", Run(*overrides)
        losses = [run.losses(run.step(number, 1e-3)) for number in (1, 2)]
        save(run.engine, folder / case, 2)
        losses += [run.losses(run.step(number, 1e-3)) for number in (3, 4)]
        whole = {"digest": digest(run.engine), "losses": losses[2:], "queue": run.queue()}
        skipped = run.step(5, 1e-3, poisoned=True)
        whole["skipped"] = not bool(skipped.finite) and digest(run.engine) == whole["digest"]
        run.engine.close()
        again = Run(*overrides, seed=1)
        read_newest(folder / case, again.engine)
        rest = [again.losses(again.step(number, 1e-3)) for number in (3, 4)]
        part = {"digest": digest(again.engine), "losses": rest, "queue": again.queue()}
        again.engine.close()
        out[case] = {"whole": whole, "parts": part}
    return out


def back(folder: Path) -> dict[str, Any]:
    """One process goes on from two processes' checkpoint in stage 3."""
    run = Run("engine.zero=zero1", *GATHERED, seed=1)
    read_newest(folder / "zero3-step", run.engine)
    rest = [run.losses(run.step(number, 1e-3)) for number in (3, 4)]
    return {"losses": rest, "queue": run.queue()}


def bounds(folder: Path) -> dict[str, Any]:
    """The temperature's master after a step of Adam that carries it beyond a bound, whichever its sign."""
    out: dict[str, Any] = {}
    for layout in ("zero1", "zero3"):
        found = []
        for start in (0.0011, 0.999):
            run = Run(f"engine.zero={layout}", f"objectives.itc.temperature={start}", *GATHERED)
            run.step(1, lr=2.0)
            found.append(run.temperature())
            run.engine.close()
        out[layout] = found
    return out


THEMES = {f.__name__: f for f in (gradients, lengths, queues, resume, back, bounds)}

if __name__ == "__main__":
    zero.join(120)
    for theme in sys.argv[1].split(","):
        results = THEMES[theme](Path(sys.argv[2]))
        if dist.rank() == 0:
            (Path(sys.argv[2]) / f"{theme}-{dist.world_size()}.json").write_text(json.dumps(results))
    dist.barrier(60)
    leave(0)  # libraries have been seen to abort in their exit handlers
