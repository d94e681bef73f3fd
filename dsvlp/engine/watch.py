"""What a run says while it runs: the progress line, the curves, the pictures. Numbers only at log steps."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsvlp import config, dist
from dsvlp.accounting import flops, hardware
from dsvlp.accounting.clock import Clock
from dsvlp.engine import pictures
from dsvlp.engine.metrics import Metrics
from dsvlp.engine.timer import StepTimer

if TYPE_CHECKING:
    from pathlib import Path

    from dsvlp.engine.step import Shown
    from dsvlp.recipe import Recipe
    from dsvlp.types import DataFacts

log = logging.getLogger(__name__)


class Watch:
    """Speaks for a run on rank 0; on the others every call does nothing.

    Args:
        recipe: the run's recipe.
        folder: the run's folder.
        step: the step that the run goes on from.
        clock: the run's clock.
        facts: what is known of the data, for the price of a pair.
        device: the device of this rank.

    Attributes:
        peak_flops: FLOP/s of this rank's device that MFU divides by.
        peak_kind: what that is: "peak" of the data sheet, or a measured "matmul".
    """

    def __init__(
        self, recipe: Recipe, folder: Path, step: int, clock: Clock, facts: DataFacts, device: torch.device
    ) -> None:
        self._recipe, self._clock, self._facts, self._device = recipe, clock, facts, device
        self._metrics: Metrics | None = None
        if dist.rank() == 0:
            axis = "gpu" if device.type == "cuda" else "cpu"
            self._metrics = Metrics(folder, step, self.samples(step), clock.device_seconds, axis)
        self.peak_flops, self.peak_kind = peak(device, recipe.engine.precision)
        self._read_step = step
        self._save_seconds = 0.0

    def samples(self, step: int) -> int:
        """Returns the pairs seen after a step."""
        return step * self._recipe.batch.global_pairs

    def step(self, step: int, values: dict[str, float], timer: StepTimer, text_tokens: float) -> None:
        """Writes a log step: its losses, and where the time went since the last.

        Args:
            step: steps made.
            values: `step.summary` and what else this step has.
            timer: of the steps since the last call.
            text_tokens: mean length of the step's texts, for model FLOPs.
        """
        (parts, wall), host = timer.read(), timer.read_host()
        steps = step - self._read_step
        self._read_step = step
        if self._metrics is None or steps == 0:
            return
        rate = steps * self._recipe.batch.global_pairs / max(wall, 1e-9)
        flop = flops.train_flops(self._recipe, text_tokens=text_tokens, facts=self._facts)
        values = values | {
            "speed/samples_per_second": rate,
            "speed/seconds_per_step": wall / steps,
            f"speed/mfu_of_{self.peak_kind}": hardware.mfu(rate / dist.world_size(), flop, self.peak_flops),
            "speed/text_tokens": text_tokens,
            "memory/peak_gib": memory(self._device),
            **{f"time/{name}": seconds / steps for name, seconds in parts.items()},
            **{f"time/{name}": seconds / steps for name, seconds in host.items()},
            "time/other": max(0.0, wall - sum(parts.values())) / steps,
            "time/save": self._save_seconds / steps,
        }
        self._save_seconds = 0.0
        self._write(step, values)
        log.info(self._line(step, values, rate))

    def _line(self, step: int, values: dict[str, float], rate: float) -> str:
        total = self._recipe.schedule.steps
        left = (total - step) * self._recipe.batch.global_pairs / rate
        losses = " ".join(
            f"{name.removeprefix('loss/')} {value:.4f}"
            for name, value in values.items()
            if name.startswith("loss/") and name != "loss/total"
        )
        waits = values["time/data"] / values["speed/seconds_per_step"]
        return (
            f"step {step}/{total}  loss {values['loss/total']:.4f} ({losses})  {rate:.1f} samples/s  "
            f"data wait {waits:.0%}  ETA {timedelta(seconds=round(left))}"
        )

    def saved(self, seconds: float) -> None:
        """Notes how long a save held the steps up; the next log step shares it out over its steps."""
        self._save_seconds += seconds

    def validated(self, step: int, results: dict[str, float], best: bool) -> None:
        """Writes a validation."""
        if self._metrics is None:
            return
        self._write(step, {f"validation/{name}": value for name, value in results.items()})
        parts = [
            f"{name.removeprefix('constant/')} {results['loss/' + name[9:]]:.4f} (constant {value:.4f})"
            for name, value in results.items()
            if name.startswith("constant/") and name.count("/") == 1
        ]
        log.info("validation at step %d: %s%s", step, ", ".join(parts), "; the best so far" if best else "")

    def draw(self, step: int, shown: Shown, tokens: Callable[[Tensor], list[str]]) -> None:
        """Draws a micro-batch as augmented and as the losses see it, and the hard negatives drawn for it, and
        writes the guesses at masked words.

        Args:
            step: steps made.
            shown: the micro-batch.
            tokens: ids -> words.
        """
        if self._metrics is None:
            return
        for name, view in shown.prepared.views.items():
            self._metrics.image(step, f"inputs/{name}", pictures.inputs(shown.batch, view))
        itm = self._recipe.objectives.itm
        if itm is not None and "itm" in shown.drawn:
            gallery = pictures.hard_negatives(shown, itm.view, tokens)
            self._metrics.image(step, "hard_negatives", gallery)
        mlm = self._recipe.objectives.mlm
        if mlm is not None:
            self._metrics.text(step, "masked_words", pictures.masked_captions(shown, mlm.view, tokens))

    def flush(self) -> None:
        """Hands all points to the system: a checkpoint is about to count on them."""
        if self._metrics is not None:
            self._metrics.flush()

    def close(self, results: dict[str, float]) -> None:
        """Writes the recipe's keys beside the results, and closes the files."""
        if self._metrics is None:
            return
        if results:
            final = {
                f"final/{name}": value for name, value in results.items() if not name.startswith("count/")
            }
            self._metrics.hparams(flat(config.dump(self._recipe)), final)
        self._metrics.close()

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self._metrics is not None:
            self._clock.tick()
            self._metrics.scalars(step, self.samples(step), self._clock.device_seconds, values)


def flat(tables: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Returns dotted keys of nested tables."""
    out: dict[str, object] = {}
    for key, value in tables.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def memory(device: torch.device) -> float:
    """Returns this process's largest memory so far in GiB: the GPU's where it has one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peak(device: torch.device, precision: str) -> tuple[float, str]:
    """Returns (FLOP/s that MFU divides by, what it is): the data sheet's, or a measured matrix product's."""
    known = hardware.peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if known is not None:
        return known, "peak"
    return measured_product(device, torch.bfloat16 if precision == "bf16" else torch.float32), "matmul"


def measured_product(device: torch.device, dtype: torch.dtype, side: int = 1024, times: int = 4) -> float:
    """Returns the FLOP/s of a large matrix product on this device with this process's threads."""
    a = torch.ones(side, side, device=device, dtype=dtype)
    b = a.clone()
    torch.mm(a, b).sum().item()  # warm-up, and waits for the device
    begin = time.perf_counter()
    for _ in range(times):
        c = torch.mm(a, b)
    c.sum().item()
    return 2.0 * side**3 * times / (time.perf_counter() - begin)
