"""Run on each rank by test_train.py and others: trains one run after the other, with faults.

`faulty_run.py FOLDER FAULTS [RECIPE] OVERRIDES ... [-- ...]`; "kill:5:1" is SIGKILL in step 5 on rank 1.
Faults: kill (SIGKILL between backward and update, once a checkpoint stands), stop (SIGTERM), nan (the loss).
The samples of each step are written to FOLDER.samples/STEP-RANK.json.
"""

import json
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
from dsvlp.types import Batch


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

    def remember(self, number: int, batches: list[Batch]) -> None:
        """Notes a step's samples beside the run's folder; a step made again must have the same."""
        samples = [sample for batch in batches for sample in batch.samples.tolist()]
        notes = self.folder.with_name(f"{self.folder.name}.samples")
        notes.mkdir(exist_ok=True)
        path = notes / f"{number}-{dist.rank()}.json"
        assert not path.exists() or json.loads(path.read_text()) == samples
        path.write_text(json.dumps(samples))

    def __enter__(self) -> "Faults":
        faults = self

        def run(
            self: step.Step, number: int, batches: list[Batch], *rest: object, **named: object
        ) -> step.StepOutput:
            faults.now = number
            faults.remember(number, batches)
            if faults.here("stop"):
                os.kill(os.getpid(), signal.SIGTERM)
            return faults.run(self, number, batches, *rest, **named)

        def total(self: step.Step, losses: dict, totals: Tensor) -> Tensor:
            value = faults.total(self, losses, totals)
            return value * float("nan") if faults.here("nan") else value

        def update(self: zero.Engine, factor: float) -> zero.StepResult:
            if faults.here("kill"):
                faults.wait_for_a_checkpoint()
                os.kill(os.getpid(), signal.SIGKILL)
            return faults.update(self, factor)

        step.Step.run, step.Step.total, zero.Engine.step = run, total, update
        return self

    def __exit__(self, *error: object) -> None:
        step.Step.run, step.Step.total, zero.Engine.step = self.run, self.total, self.update


def main() -> int:
    code, arguments = 0, sys.argv[1:]
    while arguments:
        end = arguments.index("--") if "--" in arguments else len(arguments)
        (folder, faults, *overrides), arguments = arguments[:end], arguments[end + 1 :]
        name = overrides.pop(0) if "=" not in overrides[0] else "tiny_svl"
        with Faults(Path(folder), faults.split()):
            stopped = train(recipe.load(name, overrides), Path(folder)).stopped
        code = STOPPED if stopped else 0
    return code


if __name__ == "__main__":
    local.leave(local.guard(main))
