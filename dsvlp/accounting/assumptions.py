"""What a plan takes for granted, with where it comes from; and an MFU out of a measurement. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dsvlp.errors import RecipeError
from dsvlp.recipe import Recipe


@dataclass(frozen=True)
class Assumptions:
    """What the arithmetic takes for granted; all can be set.

    Attributes:
        mfu: share of the card's peak that a step reaches.
        mfu_source: where it comes from.
        network_gbit: of a node to the others, Gbit/s.
        interruption_gpu_hours: GPU-hours between two interruptions. Llama 3: 50,000 (Llama team, 2024,
            table 5: 419 in 54 days on 16,384); OPT: 12,000 (its logbook).
        start_seconds: from an allocation's begin to its first step.
        stop_seconds: that an allocation keeps back for its last save.
        copy_bytes: bytes/s at which a process copies its share of a checkpoint to the host. Measured: 2.6
            GB/s, 108 M parameters on two processes of a CPU.
        images_per_cpu_second: that a core decodes. Measured: 388 of 640x480 to 384 pixels on an AMD EPYC
            (`dsvlp bench loader`).
        row_bytes: mean bytes of an image in the data set; None: unknown.
    """

    mfu: float = 0.3
    mfu_source: str = "stated"
    network_gbit: float = 400.0
    interruption_gpu_hours: float = 50_000.0
    start_seconds: float = 120.0
    stop_seconds: float = 120.0
    copy_bytes: float = 2.6e9
    images_per_cpu_second: float = 388.0
    row_bytes: float | None = None


def measured(result: dict[str, Any], recipe: Recipe, where: str) -> tuple[float, str]:
    """Returns the MFU that `dsvlp bench step --json` found for this kind of step, and where it comes from.

    Raises:
        RecipeError: it holds none of this system with the same sharing of prefixes.
    """
    results = result.get("variants", {where: result})
    for name, one in results.items():
        tables = one["recipe"]
        same = tables["model"]["system"] == recipe.model.system
        if not same or tables["engine"]["share_prefixes"] != recipe.engine.share_prefixes:
            continue
        length = tables["model"]["text"]["max_length"]
        for figure in one["figures"]:
            if figure["name"].startswith("MFU of") and figure["name"].endswith(f", {length} tokens"):
                of = figure["name"].removeprefix("MFU of the ").partition(",")[0]
                return figure[
                    "median"
                ] / 100, f"measured: {name}, of the {of}, on {one['hardware']['device']}"
    raise RecipeError(
        f"{where} has no MFU of {recipe.model.system} with engine.share_prefixes = "
        f"{recipe.engine.share_prefixes}; it has {', '.join(results)}",
        "a result of `dsvlp bench step` of the same system",
        "Measure it, or state --mfu",
    )
