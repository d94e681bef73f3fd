"""The measurement behind `dsvlp bench step`: real optimizer steps of a recipe, and where their time goes.

Loader, system, engine and step are those of the training loop; what the loop does between steps
(losses to the host, curves, checkpoints) is left out. The steps run in one go, and the clocks are
read at the end of each repeat alone, so that a GPU is not stopped to ask within one. The matrix
product that stands for a CPU's peak is timed before the first step and after the last, when nothing
else of ours runs; the highest rate counts.
"""

from __future__ import annotations

import logging
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dsvlp import config, dist
from dsvlp import recipe as recipes
from dsvlp import system as systems
from dsvlp.data.loader import Data, open_data
from dsvlp.engine import schedule, watch, zero
from dsvlp.engine.bench_figures import FORMAT, Measured, Repeat, figures
from dsvlp.engine.run_folder import git_state, versions
from dsvlp.engine.step import Step, mean_text_tokens
from dsvlp.engine.watchdog import Watchdog
from dsvlp.recipe import Recipe
from dsvlp.system import Request, System

log = logging.getLogger(__name__)

_CPUINFO = Path("/proc/cpuinfo")
_STATUS = Path("/proc/self/status")
_PEAK_TRIES = 3  # a busy machine halves a single one


@dataclass(frozen=True)
class Lengths:
    """What to measure, and how long.

    Attributes:
        steps: optimizer steps of a repeat.
        warmup: steps before the first repeat; they count nowhere.
        repeats: measurements, one after the other.
        update: False for forward and backward alone, without ZeRO, optimizer and its moments.
        count_flops: count what one more step executes.
    """

    steps: int
    warmup: int
    repeats: int
    update: bool = True
    count_flops: bool = False


class ForwardBackward:
    """In the place of `zero.Engine`: makes the gradients of this process's pairs and drops them."""

    def __init__(self, system: System, precision: str, device: torch.device) -> None:
        self.device = device
        self._system = system.to(device).train()
        self._autocast = precision == "bf16"

    def __call__(self, request: Request) -> Any:
        """Returns the system's answer to a request."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return self._system(request)

    def backward(self, loss: Tensor) -> None:
        """Accumulates the gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, lr: float) -> zero.StepResult:
        """Drops the gradients."""
        self._system.zero_grad(set_to_none=True)
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        return zero.StepResult(torch.zeros((), device=self.device), finite)

    def close(self) -> None:
        """Does nothing: there are no hooks to remove."""


def bench(recipe: Recipe, lengths: Lengths) -> dict[str, Any]:
    """Returns the figures of a recipe's steps on this machine, with all that they depend on, as JSON.

    Every rank must call; all get the same figures.
    """
    with Watchdog(recipe.engine.watchdog_seconds) as watchdog:
        zero.join(recipe.engine.watchdog_seconds)
        with open_data(recipe) as data:
            mine = _measure(recipe, data, lengths, watchdog)
        ranks = [Measured.from_json(one) for one in dist.gather_objects(asdict(mine))]
    return {
        "format": FORMAT,
        "figures": [figure.to_json() for figure in figures(recipe, data.facts, ranks)],
        "hardware": machine(dist.device()),
        "settings": settings(recipe, lengths),
        "versions": versions(),
        "git": git_state(),
        "recipe": config.dump(recipe),
    }


def _measure(recipe: Recipe, data: Data, lengths: Lengths, watchdog: Watchdog) -> Measured:
    accumulation = recipes.accumulation(recipe, dist.world_size())
    before = _resident("VmRSS")
    engine, step = _build(recipe, data, lengths.update, accumulation)
    peaks = _peaks(engine.device, recipe)
    training = _Training(recipe, data, step, accumulation, watchdog, before)
    training.repeat(lengths.warmup)
    repeats = []
    for number in range(lengths.repeats):
        repeats.append(training.repeat(lengths.steps))
        log.info("repeat %d of %d: %.1f ms a step", number + 1, lengths.repeats, 1e3 * repeats[-1].wall)
    peak, peak_name = max(peaks + _peaks(engine.device, recipe))
    counted = training.counted_flops() if lengths.count_flops else None
    engine.close()
    return Measured(repeats, peak, peak_name, engine.device.type, counted)


def _build(
    recipe: Recipe, data: Data, update: bool, accumulation: int
) -> tuple[zero.Engine | ForwardBackward, Step]:
    system = systems.build(recipe, data.facts)
    engine: zero.Engine | ForwardBackward
    if update:
        engine = zero.Engine(system, recipe, accumulation=accumulation)
    else:
        engine = ForwardBackward(system, recipe.engine.precision, dist.device())
    return engine, Step(cast(zero.Engine, engine), system, recipe, accumulation, data.fetcher)


def _peaks(device: torch.device, recipe: Recipe) -> list[tuple[float, str]]:
    """Returns what `watch.peak` says, a few times: the same each time where there is a data sheet."""
    return [watch.peak(device, recipe.engine.precision) for _ in range(_PEAK_TRIES)]


class _Training:
    """Takes steps as the training loop does, and reads the clocks after some of them."""

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        step: Step,
        accumulation: int,
        watchdog: Watchdog,
        resident_before: float,
    ) -> None:
        self._recipe, self._data, self._step = recipe, data, step
        self._accumulation, self._watchdog = accumulation, watchdog
        self._resident_before = resident_before
        self._taken = 0

    def repeat(self, steps: int) -> Repeat:
        """Returns what `steps` steps took."""
        cpu = time.process_time()
        tokens = statistics.fmean([self._take() for _ in range(steps)])
        timer = self._step.timer
        (parts, wall), host = timer.read(), timer.read_host()
        return Repeat(
            {name: seconds / steps for name, seconds in parts.items()},
            {name: seconds / steps for name, seconds in host.items()},
            wall / steps,
            (time.process_time() - cpu) / steps,
            tokens,
            watch.memory(dist.device()),
            self._growth(),
        )

    def counted_flops(self) -> float:
        """Returns the FLOP a pair that one more step executes, padding and recomputation included."""
        # A fused attention kernel counts as nothing on the CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self._take()
        pairs = self._recipe.batch.global_pairs // dist.world_size()
        return float(counter.get_total_flops()) / pairs

    def _growth(self) -> float:
        """Returns GiB: what the GPU's tensors take at most, or how far this process grew since the start."""
        if dist.device().type == "cuda":
            return watch.memory(dist.device())
        return _resident("VmHWM") - self._resident_before

    def _take(self) -> float:
        """Takes a step; returns the mean real length of its texts."""
        self._watchdog.progress(f"step {self._taken + 1}")
        with self._step.timer.part("data"):
            batches = [next(self._data.train) for _ in range(self._accumulation)]
        lr = self._recipe.optimizer.lr * schedule.factor(self._recipe.schedule, self._taken)
        self._taken += 1
        self._step.run(self._taken, batches, lr, stop=False)
        return mean_text_tokens(batches)


def _resident(key: str) -> float:
    """Returns GiB of this process: "VmRSS", resident now, or "VmHWM", the most so far."""
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1]) / 2**20


def settings(recipe: Recipe, lengths: Lengths) -> dict[str, Any]:
    """Returns what of the recipe and the command decides the speed."""
    world = dist.world_size()
    return {
        "recipe": config.digest(recipe),
        **asdict(lengths),
        "processes": world,
        "threads": torch.get_num_threads(),
        "global_pairs": recipe.batch.global_pairs,
        "micro_pairs": recipes.micro_pairs(recipe, world),
        "accumulation": recipes.accumulation(recipe, world),
        "zero": recipe.engine.zero,
        "precision": recipe.engine.precision,
        "share_prefixes": recipe.engine.share_prefixes,
        "activation_checkpointing": recipe.engine.activation_checkpointing,
        "decoding_threads": recipe.data.workers,
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Returns the processors' names, and the load: a busy machine's figures are no claim."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
    }
