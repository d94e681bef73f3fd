"""One rank of the test of fetched negatives: `queue_worker.py LAYOUTS FOLDER DELAY DATASET TOKENIZER`.

Rank 0 writes FOLDER/queue-WORLD.json. Real optimizer steps of a tiny FIBER on real files.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsvlp import dist, recipe
from dsvlp.data.fetch import Fetcher, Names
from dsvlp.data.opened import open_data
from dsvlp.engine import zero
from dsvlp.engine.checkpoint import CheckpointStore
from dsvlp.engine.step import Step, summary
from dsvlp.launch.local import leave
from dsvlp.system import build
from tests.batches import make_fiber_recipe
from tests.engine.zero_worker import digest, save

SETTINGS = (
    "batch.global_pairs=16",
    "batch.micro_pairs=4",
    "objectives.itm.negatives=queue",
    "objectives.itc.queue=24",
    "objectives.itm.negatives_delay={delay}",
    "model.text.vocabulary=256",
    "model.text.max_length=24",
    "model.text.positions=32",
    "engine.cut_texts={cut}",
    "data.workers=1",
)


class Run:
    """Optimizer steps on this rank, and what they leave."""

    def __init__(self, delay: str, dataset: str, tokenizer: str, layout: str, seed: int = 0) -> None:
        paths = (f'data.train=[{{path="{dataset}"}}]', f'data.tokenizer="{tokenizer}"')
        settings = (text.format(delay=delay, cut="true" if delay == "1" else "false") for text in SETTINGS)
        table = make_fiber_recipe(*settings, *paths, f"engine.zero={layout}")
        self.data = open_data(table)
        self.system = build(table.model_copy(update={"seed": seed}), self.data.facts)
        self.accumulation = recipe.accumulation(table, dist.world_size())
        self.engine = zero.Engine(self.system, table, accumulation=self.accumulation)
        self.engine.train()
        self.runner = Step(self.engine, self.system, table, self.accumulation, self._noting())

    def _noting(self) -> Fetcher:
        """The fetcher, which notes what it is asked for: (first place, samples)."""
        fetcher, self.asked = self.data.fetcher, []
        assert fetcher is not None
        ask = fetcher.ask

        def noted(step: int, first: int, names: Names) -> None:
            self.asked.append((first, names().tolist()))
            ask(step, first, names)

        fetcher.ask = noted  # type: ignore[method-assign]
        return fetcher

    def drawn(self) -> list[list[int]]:
        """What the last step drew for each place of the global batch, or the pool where that is kept."""
        pool = self.system.objectives["itm"].pool  # type: ignore[union-attr]
        if pool is not None:
            return pool.samples.tolist()  # type: ignore[no-any-return,union-attr,operator]
        ranks = dist.gather_objects(list(self.asked))
        self.asked.clear()
        return [pair for _, pairs in sorted(part for rank in ranks for part in rank) for pair in pairs]

    def step(self, number: int, poisoned: bool = False) -> dict[str, Any]:
        batches = [next(self.data.train) for _ in range(self.accumulation)]
        if poisoned and dist.rank() == dist.world_size() - 1:
            batches[-1] = replace(batches[-1], images=batches[-1].images * float("nan"))
        output = self.runner.run(number, batches, 2.0, stop=False)
        names = list(self.system.objectives)
        losses = {} if poisoned else summary(output, names, dict.fromkeys(names, 1.0))
        return {"losses": losses, "drawn": self.drawn(), "finite": bool(output.finite)}

    def save(self, folder: Path, number: int) -> None:
        save(self.engine, folder, number, data=self.data.train.state_dict())

    def read(self, folder: Path) -> None:
        store = CheckpointStore(folder)
        checkpoint = store.load()
        assert checkpoint is not None
        self.engine.restore(checkpoint.reader)
        self.data.train.load_state_dict(checkpoint.state["data"])
        store.close()

    def close(self) -> None:
        self.data.__exit__()
        self.engine.close()


def go_on(paths: list[str], layout: str, folder: Path, numbers: list[int]) -> dict[str, Any]:
    """Steps of a fresh engine that goes on from a checkpoint."""
    run = Run(*paths, layout, seed=1)
    run.read(folder)
    out = {"steps": [run.step(number) for number in numbers], "digest": digest(run.engine)}
    run.close()
    return out


def through(paths: list[str], layout: str, folder: Path) -> dict[str, Any]:
    """Five steps, one that is not finite, and one after it; saved after the third and the sixth."""
    run, steps = Run(*paths, layout), []
    for number in range(1, 6):
        steps.append(run.step(number))
        if number == 3:
            run.save(folder / layout / "3", 3)
    out = {"steps": steps, "digest": digest(run.engine), "poisoned": run.step(6, poisoned=True)}
    run.save(folder / layout / "6", 6)
    out |= {"after": run.step(7), "last digest": digest(run.engine)}
    run.close()
    return out


def main(layouts: list[str], folder: Path, paths: list[str]) -> dict[str, Any]:
    if dist.world_size() == 1:
        whole = through(paths, layouts[0], folder / "one")
        return {"whole": whole, "back": go_on(paths, layouts[0], folder / "two" / "zero3" / "3", [4, 5])}
    out: dict[str, Any] = {}
    for layout in layouts:
        whole = through(paths, layout, folder / "two")
        parts = go_on(paths, layout, folder / "two" / layout / "3", [4, 5])
        after = go_on(paths, layout, folder / "two" / layout / "6", [7])
        out[layout] = {"whole": whole, "parts": parts, "after": after}
    return out


if __name__ == "__main__":
    zero.join(120)
    place = Path(sys.argv[2])
    found = main(sys.argv[1].split(","), place, sys.argv[3:])
    if dist.rank() == 0:
        (place / f"queue-{dist.world_size()}.json").write_text(json.dumps(found))
    dist.barrier(60)
    leave(0)  # libraries have been seen to abort in their exit handlers
