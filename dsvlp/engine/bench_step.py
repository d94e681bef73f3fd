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
from typing import Any

import torch

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

log = logging.getLogger(__name__)

_CPUINFO = Path("/proc/cpuinfo")
_PEAK_TRIES = 3  # a busy machine halves a single one


@dataclass(frozen=True)
class Lengths:
    """How long to measure.

    Attributes:
        steps: optimizer steps of a repeat.
        warmup: steps before the first repeat; they count nowhere.
        repeats: measurements, one after the other.
    """

    steps: int
    warmup: int
    repeats: int


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
    system = systems.build(recipe, data.facts)
    engine = zero.Engine(system, recipe, accumulation=accumulation)
    peaks = _peaks(engine.device, recipe)
    training = _Training(recipe, data, Step(engine, system, recipe, accumulation), accumulation, watchdog)
    training.repeat(lengths.warmup)
    repeats = []
    for number in range(lengths.repeats):
        repeats.append(training.repeat(lengths.steps))
        log.info("repeat %d of %d: %.1f ms a step", number + 1, lengths.repeats, 1e3 * repeats[-1].wall)
    peak, peak_name = max(peaks + _peaks(engine.device, recipe))
    engine.close()
    return Measured(repeats, peak, peak_name, engine.device.type)


def _peaks(device: torch.device, recipe: Recipe) -> list[tuple[float, str]]:
    """Returns what `watch.peak` says, a few times: the same each time where there is a data sheet."""
    return [watch.peak(device, recipe.engine.precision) for _ in range(_PEAK_TRIES)]


class _Training:
    """Takes steps as the training loop does, and reads the clocks after some of them."""

    def __init__(self, recipe: Recipe, data: Data, step: Step, accumulation: int, watchdog: Watchdog) -> None:
        self._recipe, self._data, self._step = recipe, data, step
        self._accumulation, self._watchdog = accumulation, watchdog
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
        )

    def _take(self) -> float:
        """Takes a step; returns the mean real length of its texts."""
        self._watchdog.progress(f"step {self._taken + 1}")
        with self._step.timer.part("data"):
            batches = [next(self._data.train) for _ in range(self._accumulation)]
        lr = self._recipe.optimizer.lr * schedule.factor(self._recipe.schedule, self._taken)
        self._taken += 1
        self._step.run(self._taken, batches, lr, stop=False)
        return mean_text_tokens(batches)


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
