"""A trained system without DeepSpeed: a run's checkpoint, by name, on any number of processes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from dsvlp import dist
from dsvlp import recipe as recipes
from dsvlp import system as systems
from dsvlp.engine.checkpoint import Checkpoint, CheckpointStore, open_checkpoint, read_weights
from dsvlp.errors import CheckpointError, RunError
from dsvlp.recipe import Recipe
from dsvlp.system import Request, System
from dsvlp.types import DataFacts

log = logging.getLogger(__name__)


class Inference:
    """Forwards of a system on one device, with the recipe's precision: what evaluation needs of an engine.

    Args:
        system: the trained module.
        precision: "fp32", or "bf16" for autocast.
        device: where it runs.
    """

    def __init__(self, system: System, precision: str, device: torch.device) -> None:
        self.device = device
        self._system = system.to(device)
        self._autocast = precision == "bf16"
        self.eval()

    def __call__(self, request: Request) -> Any:
        """Returns the system's answer to a request."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return self._system(request)

    def eval(self) -> None:
        """Switches dropout and batch statistics off."""
        self._system.eval()

    def train(self) -> None:
        """Does nothing: what is only evaluated stays in evaluation mode."""


@dataclass(frozen=True)
class Trained:
    """A run's system at one of its checkpoints.

    Attributes:
        recipe: the run's recipe.
        facts: what the system knew of its data.
        system: with the checkpoint's weights, on the CPU.
        step: the checkpoint's.
        path: the checkpoint's folder.
    """

    recipe: Recipe
    facts: DataFacts
    system: System
    step: int
    path: Path


def load_trained(run: Path, which: Literal["best", "last"] = "last") -> Trained:
    """Returns a run's system with the weights of its last checkpoint, or of its best by validation.

    Where the last is damaged, the newest older one that verifies is taken and a warning names the file.
    Every rank must call.

    Raises:
        RunError: the folder holds no checkpoint.
        CheckpointError: none verifies, or the tensors are not the system's.
    """
    checkpoint = _choose(run, which)
    path = checkpoint.path
    weights, state = read_weights(checkpoint), checkpoint.state
    recipe = recipes.from_json(state["recipe"], str(path / "state.json"))
    facts = DataFacts.from_json(state["facts"])
    system = systems.build(recipe.model_copy(update={"model": _bare(recipe)}), facts)
    load_weights(system, weights, str(path))
    return Trained(recipe, facts, system, checkpoint.step, path)


def _bare(recipe: Recipe) -> Any:
    """Returns the model's table without published weights: the checkpoint has its own."""
    return recipe.model.model_copy(update={"pretrained": False})


def _choose(run: Path, which: str) -> Checkpoint:
    folder = run / "checkpoints"
    newest = CheckpointStore(folder).load()
    if newest is None:
        raise RunError(
            f"{folder} holds no checkpoint", "a run that has saved", f"Train it: dsvlp train ... --run {run}"
        )
    if which == "last":
        return newest
    best = newest.state["best"]
    if best is None:
        raise RunError(f"{run} has never validated", "a run with data.validation", "Use the last checkpoint")
    return open_checkpoint(folder / f"step-{int(best['step']):08d}")


def named_tensors(system: System) -> dict[str, torch.Tensor]:
    """Returns every parameter and persistent buffer by name, a tied parameter under its first one."""
    persistent = system.state_dict().keys()
    tensors: dict[str, torch.Tensor] = dict(system.named_parameters())
    return tensors | {name: buffer for name, buffer in system.named_buffers() if name in persistent}


def load_weights(system: System, weights: dict[str, torch.Tensor], where: str) -> None:
    """Copies named tensors into a system's parameters and persistent buffers, all of them.

    Raises:
        CheckpointError: names what is missing, unexpected or of another shape.
    """
    expected = named_tensors(system)
    wrong = [
        f"{name}: {tuple(weights[name].shape) if name in weights else 'absent'} in the file, "
        f"{tuple(expected[name].shape) if name in expected else 'absent'} in the system"
        for name in sorted(expected.keys() | weights.keys())
        if name not in expected or name not in weights or expected[name].shape != weights[name].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors of {where} do not fit the system: {'; '.join(wrong[:5])}",
            "the model and objectives that it was written with",
            "Use the recipe of its run",
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(weights[name])
    if dist.rank() == 0:
        log.info("read %d tensors from %s", len(expected), where)
