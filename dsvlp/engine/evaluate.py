"""The pre-training losses on held-out data, each beside its best constant predictor.

Sharded over ranks; the loader pads with pairs of weight 0, so that every rank runs the same number
of forwards (ZeRO-3 would wait for ever otherwise) and no pair counts twice. Sums are kept in
float64 on the device and leave it once, in one all-reduce.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from dsvlp import dist
from dsvlp.engine.step import add_metrics
from dsvlp.errors import RunError
from dsvlp.system import System, TrainRequest
from dsvlp.types import Batch

Progress = Callable[[str], None]


class Forward(Protocol):
    """What evaluation needs of an engine: `zero.Engine` while training, `inference.Inference` after."""

    @property
    def device(self) -> torch.device:
        """Where requests must lie."""

    def __call__(self, request: Any) -> Any:
        """Returns the system's answer to a request."""

    def train(self) -> None:
        """Switches to training mode."""

    def eval(self) -> None:
        """Switches to evaluation mode."""


def silent(doing: str) -> None:
    """The progress of someone whom nobody watches."""


@contextmanager
def evaluating(engine: Forward) -> Iterator[None]:
    """Dropout off and no gradients inside, training mode again after."""
    engine.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        engine.train()


def evaluate(
    engine: Forward,
    system: System,
    batches: Iterable[Batch],
    weights: dict[str, float],
    progress: Progress = silent,
) -> dict[str, float]:
    """Returns the losses and metrics of a whole data set. Every rank must call, with equally many batches.

    Args:
        engine: forwards go through it.
        system: the trained module; prepares batches and knows the constant predictors.
        batches: this rank's share, on the CPU, one pass.
        weights: objective -> weight, for the total.
        progress: called at each micro-batch.

    Returns:
        "loss/K", "constant/K" (loss of the best constant predictor), "constant/K/accuracy",
        "metrics/K/...", "count/K" and "loss/total".

    Raises:
        RunError: no target was found at all.
    """
    sums = _Sums(system)
    with evaluating(engine):
        for number, batch in enumerate(batches):
            progress(f"evaluation, micro-batch {number}")
            prepared = system.prepare(batch.to(engine.device))
            losses = engine(TrainRequest(prepared))
            for name, objective in system.objectives.items():
                sums.add(f"loss/{name}", torch.stack([losses[name].sum, losses[name].count]))
                sums.add(f"constant/{name}", objective.constant(prepared.targets[name]))  # type: ignore[operator]
            metrics: dict[str, Tensor] = {}
            add_metrics(metrics, losses)
            for key, pair in metrics.items():
                sums.add(f"metrics/{key}", pair)
    progress("evaluation, sums")
    return _results(sums.reduced(engine.device), system, weights)


class _Sums:
    """Named float64 tensors that add up over batches, then over ranks."""

    def __init__(self, system: System) -> None:
        self._values: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        value = value.detach().double()
        self._values[name] = self._values[name] + value if name in self._values else value

    def reduced(self, device: torch.device) -> dict[str, Tensor]:
        """Returns the sums over all ranks, on the CPU. Every rank must call."""
        if not self._values:
            raise RunError("the evaluation data holds no batch", "at least one pair")
        names = sorted(self._values)
        values = [self._values[name].to(device) for name in names]
        flat = dist.all_reduce_sum(torch.cat([value.flatten() for value in values])).cpu()
        parts = flat.split([value.numel() for value in values])
        return {name: part.view(value.shape) for name, part, value in zip(names, parts, values, strict=True)}


def _results(sums: dict[str, Tensor], system: System, weights: dict[str, float]) -> dict[str, float]:
    out: dict[str, float] = {}
    total = 0.0
    for name, objective in system.objectives.items():
        loss, count = sums[f"loss/{name}"].tolist()
        out[f"loss/{name}"] = loss / count if count else 0.0
        out[f"count/{name}"] = count
        total += weights[name] * out[f"loss/{name}"]
        constant: Any = objective
        for key, value in constant.constant_loss(sums[f"constant/{name}"]).items():
            out[f"constant/{name}" if key == "loss" else f"constant/{name}/{key}"] = value
    out["loss/total"] = total
    for key, pair in sums.items():
        if key.startswith("metrics/"):
            value, count = pair.tolist()
            if count:
                out[key] = value / count
    return out
