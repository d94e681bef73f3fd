"""One optimizer step: prepare all micro-batches, count over all ranks, then forward and backward each.

The loss does not depend on how the batch is cut: each objective's sum is divided by its count over
all ranks and all micro-batches, known before the first backward by one all-reduce on the device.
DeepSpeed divides by the accumulation and averages over the ranks; both are multiplied back in.
Nothing here waits for the device.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from dsvlp import dist, seed
from dsvlp.engine.feed import AtOnce, Feed, first_place
from dsvlp.engine.texts import shortened
from dsvlp.engine.timer import StepTimer
from dsvlp.layers.compiled import compile_blocks
from dsvlp.recipe import gathers_negatives, micro_pairs
from dsvlp.system import Prepared, System, TrainRequest
from dsvlp.types import Batch, Loss

if TYPE_CHECKING:
    from dsvlp.data.fetch import Fetcher
    from dsvlp.engine.zero import Engine
    from dsvlp.objectives.base import Objective
    from dsvlp.objectives.itm import ITM
    from dsvlp.recipe import Recipe


@dataclass(frozen=True)
class StepOutput:
    """What a step leaves on the device; `summary` brings it to the host.

    Attributes:
        sums: float32 [K], each objective's summed loss, this rank's.
        totals: float32 [K], each objective's count over all ranks.
        metrics: "objective/metric" -> float32 [2] (sum, count), this rank's.
        stop: float32 scalar, number of ranks that were asked to stop.
        grad_norm: float32 scalar before clipping.
        finite: bool scalar, False where all ranks skipped the update.
        shown: the first micro-batch, where asked for.
    """

    sums: Tensor
    totals: Tensor
    metrics: dict[str, Tensor]
    stop: Tensor
    grad_norm: Tensor
    finite: Tensor
    shown: "Shown | None" = None


@dataclass(frozen=True)
class Shown:
    """A step's first micro-batch, kept where it is to be drawn.

    Attributes:
        batch: as the loader made it.
        prepared: as the losses see it.
        predictions: objective -> its predictions, see `Loss.predictions`.
        drawn: objective -> the pairs that it drew, see `Loss.drawn`.
    """

    batch: Batch
    prepared: Prepared
    predictions: dict[str, Tensor]
    drawn: dict[str, Tensor]


class Step:
    """Runs optimizer steps on an engine.

    Args:
        engine: DeepSpeed around `system`.
        system: prepares batches; its parameters are used through `engine` alone.
        recipe: weights and seed.
        accumulation: micro-batches a step.
        fetcher: brings ITM's negatives again where they come from ITC's queue.
    """

    def __init__(
        self,
        engine: Engine,
        system: System,
        recipe: Recipe,
        accumulation: int,
        fetcher: Fetcher | None = None,
    ) -> None:
        if recipe.engine.compile:
            compile_blocks(system, engine.device)
        self._engine, self._system = engine, system
        self._names = list(system.objectives)
        tables = recipe.objectives.enabled()
        weights = [tables[name].weight for name in self._names]  # type: ignore[attr-defined]
        self._weights = torch.tensor(weights, device=engine.device)
        self._seed = recipe.seed
        self._cut_texts = recipe.engine.cut_texts
        self._agree: Callable[[list[int]], list[int]] = list
        if self._cut_texts and gathers_negatives(recipe):
            self._agree = partial(dist.agreed_most, group=dist.side_group(recipe.engine.watchdog_seconds))
        self._scale = dist.world_size() * accumulation
        self._feed: Feed | None = None
        self._at_once: Callable[[int, int], AtOnce] | None = None
        if fetcher is not None:
            pool, micro = cast("ITM", system.objectives["itm"]).pool, micro_pairs(recipe, dist.world_size())
            if pool is None:
                self._at_once = lambda step, number: AtOnce(
                    fetcher, step, first_place(number, micro), engine.device
                )
            else:
                self._feed = Feed(pool, fetcher, micro, accumulation)
        host = {name: cast("Objective", module).seconds for name, module in system.objectives.items()}
        self.timer = StepTimer(engine.device, host)

    def run(
        self, step: int, batches: list[Batch], factor: float, stop: bool, show: bool = False
    ) -> StepOutput:
        """Takes step number `step` on this rank's micro-batches. Every rank must call.

        Args:
            step: counts from 1; with micro-step and rank it seeds dropout.
            batches: this rank's micro-batches of the step, as the loader made them.
            factor: the schedule's share of every peak learning rate.
            stop: whether this rank was asked to stop.
            show: keep the first micro-batch for the pictures.
        """
        if self._feed is not None:
            with self.timer.part("data"):
                batches = self._feed.bring(step, batches)
        if self._cut_texts:
            batches = shortened(batches, self._agree)
        prepared = self.prepare(batches)
        totals, stop_count = self.count(prepared, stop)
        sums = torch.zeros_like(totals)
        metrics: dict[str, Tensor] = {}
        shown = None
        for micro, one in enumerate(prepared):
            reseed(self._seed, step, micro, dist.rank())
            fetch = None if self._at_once is None else self._at_once(step, micro)
            with self.timer.part("forward"):
                losses = self._engine(TrainRequest(one, fetch))
                total = self.total(losses, totals)
            if self._feed is not None:
                self._feed.drawn(step + 1, micro)
            with self.timer.part("backward"):
                self._engine.backward(poisoned(total))
            sums += torch.stack([losses[name].sum.detach() for name in self._names])
            add_metrics(metrics, losses)
            if show and micro == 0:
                guesses = {
                    name: loss.predictions for name, loss in losses.items() if loss.predictions is not None
                }
                drawn = {name: loss.drawn for name, loss in losses.items() if loss.drawn is not None}
                shown = Shown(batches[0], one if fetch is None else fetch.seen(one), guesses, drawn)
        with self.timer.part("step"):
            result = self._engine.step(factor)
            for module in self._system.objectives.values():
                cast("Objective", module).after_step(result.finite)
        return StepOutput(sums, totals, metrics, stop_count, result.grad_norm, result.finite, shown)

    def prepare(self, batches: Iterable[Batch]) -> list[Prepared]:
        """Returns the step's micro-batches on the device, corrupted, with their targets."""
        prepared = []
        for batch in batches:
            with self.timer.part("prepare"), torch.no_grad():
                prepared.append(self._system.prepare(batch.to(self._engine.device)))
        return prepared

    def count(self, prepared: list[Prepared], stop: bool) -> tuple[Tensor, Tensor]:
        """Returns (counts over all ranks [K], ranks asked to stop). The step's one all-reduce of ours."""
        with self.timer.part("prepare"):
            counts = torch.stack([one.counts(self._names) for one in prepared]).sum(0)
            flag = torch.full((1,), float(stop), device=counts.device)
            summed = dist.all_reduce_sum(torch.cat([counts, flag]))
        return summed[:-1], summed[-1]

    def total(self, losses: dict[str, Loss], totals: Tensor) -> Tensor:
        """Returns sum_k weight_k sum_k world accumulation / N_k, exactly 0 for an objective with N_k = 0."""
        share = torch.where(totals > 0, self._weights / totals.clamp(min=1e-30), torch.zeros_like(totals))
        sums = torch.stack([losses[name].sum for name in self._names])
        return (sums * share).sum() * self._scale


def mean_text_tokens(batches: list[Batch]) -> float:
    """Returns the mean real length of a step's texts, for model FLOPs."""
    return sum(float(batch.text_mask.sum()) / len(batch.text_mask) for batch in batches) / len(batches)


def poisoned(total: Tensor) -> Tensor:
    """Returns the loss; where it is not finite, one whose every gradient is NaN.

    So a loss of infinity with finite gradients is skipped as well, on all ranks, by the optimizer's
    own guard: no second flag, no second collective.
    """
    factor = torch.where(torch.isfinite(total.detach()), 1.0, float("nan"))
    return total * factor


def add_metrics(into: dict[str, Tensor], losses: dict[str, Loss]) -> None:
    """Adds the (sum, count) of every metric under "objective/metric"."""
    for name, loss in losses.items():
        for metric, pair in loss.metrics.items():
            value = torch.stack([part.detach().float() for part in pair])
            key = f"{name}/{metric}"
            into[key] = into[key] + value if key in into else value


def reseed(base: int, step: int, micro: int, rank: int) -> None:
    """Seeds the default generators (dropout, drop-path): a function of the position, so no state is saved."""
    key = seed.key_of(base, step, micro, rank, "dropout") & (2**63 - 1)
    torch.manual_seed(key)
    np.random.seed(key % 2**32)
    random.seed(key)


def summary(output: StepOutput, names: list[str], weights: dict[str, float]) -> dict[str, float]:
    """Returns the step's losses and metrics over all ranks. Waits for the device. Every rank must call."""
    keys = sorted(output.metrics)
    pairs = [output.metrics[key] for key in keys]
    local = torch.cat([output.sums, *pairs]).double()
    values = dist.all_reduce_sum(local).tolist()
    totals = output.totals.tolist()
    out: dict[str, float] = {}
    for name, value, count in zip(names, values[: len(names)], totals, strict=True):
        out[f"loss/{name}"] = value / count if count else 0.0
    out["loss/total"] = sum(weights[name] * out[f"loss/{name}"] for name in names)
    for index, key in enumerate(keys):
        value, count = values[len(names) + 2 * index : len(names) + 2 * index + 2]
        if count:
            out[f"metrics/{key}"] = value / count
    out["optimizer/gradient_norm"] = float(output.grad_norm)
    return out
