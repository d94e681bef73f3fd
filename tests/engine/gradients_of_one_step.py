"""Run on each rank by test_step.py: writes the gradients of a recipe's first step, summed over all ranks."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from dsvlp import dist, recipe, system
from dsvlp.data.loader import open_data
from dsvlp.engine import zero
from dsvlp.engine.step import Step, summary


class BeforeTheUpdate:
    """The engine, whose step keeps the gradients and changes nothing."""

    def __init__(self, engine: zero.Engine) -> None:
        self.engine, self.device, self.backward = engine, engine.device, engine.backward
        self.gradients: dict[str, torch.Tensor] = {}

    def __call__(self, request: object) -> object:
        return self.engine(request)

    def step(self, lr: float) -> zero.StepResult:
        named = self.engine.system.named_parameters()
        self.gradients = {key: p.grad.clone() for key, p in named if p.grad is not None}
        return zero.StepResult(torch.zeros(()), torch.ones((), dtype=torch.bool))


def main(name: str, folder: Path, overrides: list[str]) -> None:
    zero.join()
    loaded = recipe.load("tiny_svl", overrides)
    accumulation = recipe.accumulation(loaded, dist.world_size())
    with open_data(loaded, folder) as data:
        model = system.build(loaded, data.facts)
        engine = BeforeTheUpdate(zero.Engine(model, loaded, accumulation=accumulation))
        batches = [next(data.train) for _ in range(accumulation)]
        runner = Step(engine, model, loaded, accumulation)
        output = runner.run(1, batches, lr=1e-3, stop=dist.rank() == 1)
        counts = [one.counts(list(model.objectives)).tolist() for one in runner.prepare(batches)]
        every = dist.gather_objects(counts)
        values = summary(output, list(model.objectives), dict.fromkeys(model.objectives, 1.0))
    if dist.rank() == 0:
        losses = {key: torch.tensor([value], dtype=torch.float64) for key, value in values.items()}
        rows = torch.tensor([row for rank in every for row in rank])
        save_file({**engine.gradients, **losses, "counts": rows, "stop": output.stop.view(1)}, folder / name)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
