"""Run on each rank by test_train.py: trains with faults; "kill:5:1" is SIGKILL in step 5 on rank 1.

Faults: kill (SIGKILL between backward and update, once a checkpoint stands), stop (SIGTERM), nan (the loss).
"""

import os
import signal
import sys
import time
from pathlib import Path

from torch import Tensor

from dsvlp import dist, recipe
from dsvlp.engine import step, zero
from dsvlp.engine.stop import STOPPED
from dsvlp.engine.train import train
from dsvlp.launch import local


class Faults:
    """Stands between the loop and its step."""

    def __init__(self, folder: Path, faults: list[str]) -> None:
        self.folder = folder
        self.faults = {tuple(fault.split(":")) for fault in faults}
        self.now = 0
        self.run, self.total, self.update = step.Step.run, step.Step.total, zero.Engine.step

    def here(self, kind: str) -> bool:
        return any((kind, when, str(dist.rank())) in self.faults for when in (str(self.now), "always"))

    def wait_for_a_checkpoint(self) -> None:
        deadline = time.monotonic() + 60
        while not list(self.folder.glob("checkpoints/step-*")) and time.monotonic() < deadline:
            time.sleep(0.05)

    def install(self) -> None:
        faults = self

        def run(self: step.Step, number: int, *rest: object, **named: object) -> step.StepOutput:
            faults.now = number
            if faults.here("stop"):
                os.kill(os.getpid(), signal.SIGTERM)
            return faults.run(self, number, *rest, **named)

        def total(self: step.Step, losses: dict, totals: Tensor) -> Tensor:
            value = faults.total(self, losses, totals)
            return value * float("nan") if faults.here("nan") else value

        def update(self: zero.Engine, lr: float) -> zero.StepResult:
            if faults.here("kill"):
                faults.wait_for_a_checkpoint()
                os.kill(os.getpid(), signal.SIGKILL)
            return faults.update(self, lr)

        step.Step.run, step.Step.total, zero.Engine.step = run, total, update


def main() -> int:
    folder, faults, overrides = Path(sys.argv[1]), sys.argv[2].split(), sys.argv[3:]
    Faults(folder, faults).install()
    return STOPPED if train(recipe.load("tiny_svl", overrides), folder).stopped else 0


if __name__ == "__main__":
    local.leave(local.guard(main))
