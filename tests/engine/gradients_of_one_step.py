"""Run on each rank by test_step.py: writes the gradients of a recipe's first step, summed over all ranks.

`gradients_of_one_step.py FILE FOLDER RECIPE OVERRIDES ...`
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from dsvlp import dist, recipe, system
from dsvlp.data.opened import open_data
from dsvlp.engine import zero
from dsvlp.engine.step import Step, summary


class BeforeTheUpdate:
    """The engine, whose step keeps the gradients and changes nothing."""

    def __init__(self, engine: zero.Engine) -> None:
        self.engine, self.device, self.backward = engine, engine.device, engine.backward
        self.gradients: dict[str, torch.Tensor] = {}

    def __call__(self, request: object) -> object:
        return self.engine(request)

    def step(self, factor: float) -> zero.StepResult:
        named = self.engine.system.named_parameters()
        self.gradients = {key: p.grad.clone() for key, p in named if p.grad is not None}
        return zero.StepResult(torch.zeros(()), torch.ones((), dtype=torch.bool))


def awaken(module: nn.Module) -> None:
    """Sets BatchNorm's scales to 1: a ResNet's blocks start at 0, and what is in them has no gradient."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)


def main(name: str, folder: Path, shown: str, overrides: list[str]) -> None:
    zero.join()
    loaded = recipe.load(shown, overrides)
    accumulation = recipe.accumulation(loaded, dist.world_size())
    with open_data(loaded, folder) as data:
        model = system.build(loaded, data.facts)
        awaken(model)
        engine = BeforeTheUpdate(zero.Engine(model, loaded, accumulation=accumulation))
        batches = [next(data.train) for _ in range(accumulation)]
        runner = Step(engine, model, loaded, accumulation)
        output = runner.run(1, batches, factor=1.0, stop=dist.rank() == 1)
        counts = [one.counts(list(model.objectives)).tolist() for one in runner.prepare(batches)]
        every = dist.gather_objects(counts)
        values = summary(output, list(model.objectives), dict.fromkeys(model.objectives, 1.0))
    if dist.rank() == 0:
        losses = {key: torch.tensor([value], dtype=torch.float64) for key, value in values.items()}
        rows = torch.tensor([row for rank in every for row in rank])
        save_file({**engine.gradients, **losses, "counts": rows, "stop": output.stop.view(1)}, folder / name)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
