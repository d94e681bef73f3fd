"""A bench's rows, and how what the processes of `dsvlp bench step` measured becomes such. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dsvlp import recipe as recipes
from dsvlp.accounting import flops, hardware
from dsvlp.accounting.layout import Layout
from dsvlp.accounting.memory import memory
from dsvlp.recipe import Recipe
from dsvlp.types import DataFacts

FORMAT = 2
"""Of a bench's JSON result."""

GROWTH = "peak memory over that before the model, largest process"

_LONG = {
    "data": "data wait",
    "step": "optimizer step",
    "spl/waiting": "waiting for SPL's matching, within forward",
    "spl/matching": "SPL's matching, all threads, meanwhile",
}


@dataclass(frozen=True)
class Repeat:
    """What one process measured in one repeat. Seconds are those of a step.

    Attributes:
        parts: part -> seconds; on a GPU they are the GPU's, `data` is the host's.
        host: "objective/work" -> seconds on the host, overlapping with the parts.
        wall: seconds from step to step.
        cpu: CPU seconds of the process with all its threads.
        text_tokens: mean real length of the texts.
        memory_gib: most memory so far: allocated on a GPU, else resident.
        growth_gib: the same, less what was resident before the system was built.
    """

    parts: dict[str, float]
    host: dict[str, float]
    wall: float
    cpu: float
    text_tokens: float
    memory_gib: float
    growth_gib: float


@dataclass(frozen=True)
class Measured:
    """All that one process measured.

    Attributes:
        repeats: in their order.
        peak_flops: FLOP/s of its device that MFU divides by.
        peak_name: "peak" for the data sheet's, "matmul" for a measured one.
        device: "cuda" or "cpu".
        counted_flops: FLOP a pair as executed, where they were counted.
    """

    repeats: list[Repeat]
    peak_flops: float
    peak_name: str
    device: str
    counted_flops: float | None = None

    @classmethod
    def from_json(cls, one: dict[str, Any]) -> Measured:
        """Returns the inverse of `dataclasses.asdict`."""
        return cls(**{**one, "repeats": [Repeat(**repeat) for repeat in one["repeats"]]})


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Attributes:
        name: what it is.
        unit: its unit.
        values: one a repeat.
    """

    name: str
    unit: str
    values: list[float]

    def to_json(self) -> dict[str, Any]:
        """Returns the row with its median and extremes."""
        middle = statistics.median(self.values)
        return {**asdict(self), "median": middle, "lowest": min(self.values), "highest": max(self.values)}


def figures(recipe: Recipe, facts: DataFacts, ranks: Sequence[Measured]) -> list[Figure]:
    """Returns the rows of the table.

    Seconds are means over the processes; the whole step, and so the rates, are the slowest one's.
    FLOP/s and MFU are those of one device.

    Args:
        recipe: the recipe.
        facts: what is known of the data.
        ranks: each process's measurements.
    """
    rows = []
    for repeat in zip(*(rank.repeats for rank in ranks), strict=True):
        wall = max(one.wall for one in repeat)
        tokens = statistics.fmean(one.text_tokens for one in repeat)
        rate = recipe.batch.global_pairs / wall
        rows.append(
            _times(repeat, wall)
            | {("pairs", "pairs/s"): rate, ("real text length", "tokens"): tokens}
            | _work(recipe, facts, tokens, rate / len(ranks), ranks)
            | _memory(repeat, ranks[0].device)
        )
    return [Figure(name, unit, [row[name, unit] for row in rows]) for name, unit in rows[0]]


Row = dict[tuple[str, str], float]
"""(name, unit) -> value in one repeat."""


def _times(repeat: Sequence[Repeat], wall: float) -> Row:
    seconds = {part: statistics.fmean(one.parts[part] for one in repeat) for part in repeat[0].parts}
    # On a GPU the host waits for data while the device still works: the parts may exceed the whole.
    seconds["other"] = statistics.fmean(max(0.0, one.wall - sum(one.parts.values())) for one in repeat)
    seconds["whole step"] = wall
    seconds |= {work: statistics.fmean(one.host[work] for one in repeat) for work in repeat[0].host}
    seconds["CPU time of a process"] = statistics.fmean(one.cpu for one in repeat)
    row = {(_LONG.get(name, name), "ms"): 1e3 * value for name, value in seconds.items()}
    row["data wait, share of the step", "%"] = 100 * seconds["data"] / wall
    return row


def _work(recipe: Recipe, facts: DataFacts, tokens: float, rate: float, ranks: Sequence[Measured]) -> Row:
    """Returns model FLOPs and MFU of one device, on which `rate` pairs/s are trained."""
    peak, length = min(rank.peak_flops for rank in ranks), recipe.model.text.max_length
    full = flops.train_flops(recipe, facts=facts)
    real = flops.train_flops(recipe, text_tokens=tokens, facts=facts)
    measured = ranks[0].peak_name == "matmul"
    source = f"measured {recipe.engine.precision} matmul rate" if measured else "data sheet's peak"
    counted = [rank.counted_flops for rank in ranks if rank.counted_flops is not None]
    return {
        **({("executed FLOPs a pair, counted", "GFLOP"): statistics.fmean(counted) / 1e9} if counted else {}),
        (f"model FLOPs a pair, {length} tokens", "GFLOP"): full / 1e9,
        ("model FLOPs a pair, real tokens", "GFLOP"): real / 1e9,
        ("achieved by a device, real tokens", "GFLOP/s"): rate * real / 1e9,
        (f"{source} of a device", "GFLOP/s"): peak / 1e9,
        (f"MFU of the {source}, real tokens", "%"): 100 * hardware.mfu(rate, real, peak),
        (f"MFU of the {source}, {length} tokens", "%"): 100 * hardware.mfu(rate, full, peak),
    }


def _memory(repeat: Sequence[Repeat], device: str) -> Row:
    kind = "peak GPU memory, allocated" if device == "cuda" else "peak memory, resident"
    return {
        (f"{kind}, largest process", "GiB"): max(one.memory_gib for one in repeat),
        (GROWTH, "GiB"): max(one.growth_gib for one in repeat),
    }


def memory_by_formula(
    recipe: Recipe, facts: DataFacts, layout: Layout, ranks: Sequence[Measured], update: bool
) -> list[Figure]:
    """Returns what `accounting.memory` says that a process takes, to stand beside the measured peak.

    Args:
        recipe: the recipe.
        facts: what is known of the data.
        layout: the ZeRO stage.
        ranks: each process's measurements.
        update: with ZeRO and the optimizer, else weights and gradients alone.
    """
    world, cpu = len(ranks), ranks[0].device == "cpu"
    pairs, accumulation = recipes.micro_pairs(recipe, world), recipes.accumulation(recipe, world)
    found = memory(recipe, layout, world, pairs, accumulation, cpu=cpu, facts=facts)
    zero = found.masters + found.moments + found.gradients + found.buckets
    states = found.parameters + (zero if update else found.parameters)
    rest = found.total - found.parameters - zero
    rows = {
        "weights, gradients, optimizer": states,
        "activations, copies, batches": rest,
        "all": states + rest,
    }
    repeats = len(ranks[0].repeats)
    return [
        Figure(f"memory by formula: {name}", "GiB", [size / 2**30] * repeats) for name, size in rows.items()
    ]


def joined(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns one result of several of the same recipe, their repeats one after the other.

    A saved result has a row's values beside their median and extremes; the rest is the first's.
    """
    rows: dict[tuple[str, str], list[float]] = {}
    for result in results:
        for figure in result["figures"]:
            rows.setdefault((figure["name"], figure["unit"]), []).extend(figure["values"])
    figures = [Figure(name, unit, values).to_json() for (name, unit), values in rows.items()]
    return {**results[0], "figures": figures}
