"""The measurement behind `dsvlp bench step`: real optimizer steps of a recipe, and where their time goes.

Loader, system, engine and step are those of the training loop; what the loop does between steps
(losses to the host, curves, checkpoints) is left out. The steps run in one go, and the clocks are
read at the end of each repeat alone, so that a GPU is not stopped to ask within one. The matrix
product that stands for a CPU's peak is timed before the first step and after the last, when nothing
else of ours runs; the highest rate counts.
"""

from __future__ import annotations

import logging
import statistics
import time
from contextlib import nullcontext
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dsvlp import config, dist
from dsvlp import recipe as recipes
from dsvlp import system as systems
from dsvlp.accounting.layout import Layout
from dsvlp.data.opened import Data, open_data
from dsvlp.engine import bench_parts, bench_wire, schedule, watch, zero
from dsvlp.engine.bench_figures import Measured, Repeat, figures, memory_by_formula
from dsvlp.engine.bench_parts import Marked, Rates
from dsvlp.engine.bench_result import result
from dsvlp.engine.bench_wire import Wire
from dsvlp.engine.deterministic import deterministic
from dsvlp.engine.dsconfig import load_layout
from dsvlp.engine.parts import marked
from dsvlp.engine.step import Step, mean_text_tokens
from dsvlp.engine.watchdog import Watchdog
from dsvlp.recipe import Recipe
from dsvlp.system import Request, System

log = logging.getLogger(__name__)

_STATUS = Path("/proc/self/status")
_PEAK_TRIES = 3  # a busy machine halves a single one
_LARGE_PRODUCT = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Lengths:
    """What to measure, and how long.

    Attributes:
        steps: optimizer steps of a repeat.
        warmup: steps before the first repeat; they count nowhere.
        repeats: measurements, one after the other.
        update: False for forward and backward alone, without ZeRO, optimizer and its moments.
        count_flops: count what one more step executes.
        parts: measure as often again with the parts of the step marked.
    """

    steps: int
    warmup: int
    repeats: int
    update: bool = True
    count_flops: bool = False
    parts: bool = False


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

    def step(self, factor: float) -> zero.StepResult:
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
    watching = bench_wire.watched() if lengths.parts else nullcontext(None)
    with (
        deterministic(recipe.engine.deterministic),
        watching as wire,
        Watchdog(recipe.engine.watchdog_seconds) as watchdog,
    ):
        zero.join(recipe.engine.watchdog_seconds)
        with open_data(recipe, drawn=True) as data:
            mine, parts = _measure(recipe, data, lengths, watchdog, wire)
        ranks = [Measured.from_json(one) for one in dist.gather_objects(asdict(mine))]
        layout = Layout.from_json(recipe.engine.zero, load_layout(recipe.engine.zero))
        rows = figures(recipe, data.facts, ranks)
        rows += memory_by_formula(recipe, data.facts, layout, ranks, lengths.update)
        if parts is not None:
            rows += bench_parts.rows(recipe, data.facts, dist.gather_objects(parts))
    about = settings(recipe, lengths)
    return result("step", rows, about, dist.device(), recipe=config.dump(recipe))


def _measure(
    recipe: Recipe, data: Data, lengths: Lengths, watchdog: Watchdog, wire: Wire | None
) -> tuple[Measured, Marked | None]:
    accumulation = recipes.accumulation(recipe, dist.world_size())
    before = _resident("VmRSS")
    system = systems.build(recipe, data.facts)
    engine, step = _build(recipe, system, data, lengths.update, accumulation)
    peaks = _peaks(engine.device, recipe)
    training = _Training(recipe, data, step, accumulation, watchdog, before)
    training.repeat(lengths.warmup)
    repeats = training.repeats(lengths)
    parts = None if wire is None else _measure_parts(recipe, system, engine, training, lengths, wire)
    peak, peak_name = max(peaks + _peaks(engine.device, recipe))
    counted = training.counted_flops() if lengths.count_flops else None
    engine.close()
    return Measured(repeats, peak, peak_name, engine.device.type, counted), parts


def _measure_parts(
    recipe: Recipe,
    system: System,
    engine: zero.Engine | ForwardBackward,
    training: _Training,
    lengths: Lengths,
    wire: Wire,
) -> Marked:
    """Takes as many steps again, their parts marked."""
    device, timer = engine.device, training.step.timer
    timer.host_part = None  # a GPU's table says how long it stood still, not how long the host waited
    before = _rates(device, recipe)
    wire.timer = timer
    with marked(system, timer, backward=True):
        training.repeat(1)
        wire.sent = 0.0
        repeats = training.repeats(lengths)
    wire.timer = None
    best = Rates(*(max(pair) for pair in zip(*map(astuple, (before, _rates(device, recipe))), strict=True)))
    return Marked(repeats, best, wire.sent / (lengths.steps * lengths.repeats), _updated(engine))


def _rates(device: torch.device, recipe: Recipe) -> Rates:
    dtype = torch.bfloat16 if recipe.engine.precision == "bf16" else torch.float32
    side = _LARGE_PRODUCT[device.type]
    matmul = max(watch.measured_product(device, dtype, side) for _ in range(_PEAK_TRIES))
    return Rates(matmul, bench_wire.measured_copy(device), bench_wire.measured_wire(device))


def _updated(engine: zero.Engine | ForwardBackward) -> int:
    """Returns how many parameters this process's optimizer updates."""
    if isinstance(engine, ForwardBackward):
        return 0
    return sum(flat.numel() for flat in engine.optimizer.state)


def _build(
    recipe: Recipe, system: System, data: Data, update: bool, accumulation: int
) -> tuple[zero.Engine | ForwardBackward, Step]:
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
        self.step = step
        self._recipe, self._data = recipe, data
        self._accumulation, self._watchdog = accumulation, watchdog
        self._resident_before = resident_before
        self._taken = 0

    def repeats(self, lengths: Lengths) -> list[Repeat]:
        """Returns what each of the repeats took."""
        found = []
        for number in range(lengths.repeats):
            found.append(self.repeat(lengths.steps))
            log.info("repeat %d of %d: %.1f ms a step", number + 1, lengths.repeats, 1e3 * found[-1].wall)
        return found

    def repeat(self, steps: int) -> Repeat:
        """Returns what `steps` steps took."""
        cpu = time.process_time()
        tokens = statistics.fmean([self._take() for _ in range(steps)])
        timer = self.step.timer
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
        eager = torch.compiler.set_stance("force_eager")  # a compiled graph hides what it executes
        with eager, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
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
        with self.step.timer.part("data"):
            batches = [next(self._data.train) for _ in range(self._accumulation)]
        factor = schedule.factor(self._recipe.schedule, self._taken)
        self._taken += 1
        self.step.run(self._taken, batches, factor, stop=False)
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
        "cut_texts": recipe.engine.cut_texts,
        "activation_checkpointing": recipe.engine.activation_checkpointing,
        "compile": recipe.engine.compile,
        "deterministic": recipe.engine.deterministic,
        "decoding_threads": recipe.data.workers,
    }
