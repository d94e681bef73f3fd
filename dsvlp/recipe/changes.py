"""What may change in a run's recipe between two attempts, and what would make it another run."""

from __future__ import annotations

from typing import Any

from dsvlp import config

FREE = (
    "description",
    "batch.micro_pairs",
    "checkpoint.",
    "data.max_bad_share",
    "data.prefetch",
    "data.timeout_seconds",
    "data.workers",
    "engine.activation_checkpointing",
    "engine.deterministic",
    "engine.max_skipped_steps",
    "engine.watchdog_seconds",
    "engine.zero",
    "watch.",
)
"""Keys (or tables) that may differ between attempts: they change neither samples nor updates."""


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Returns the differences of two resolved recipes as (free, binding), one line each."""
    lines = config.differences(old, new)
    free = [line for line in lines if line.startswith(FREE)]
    contrasted = new["objectives"].get("itc")  # with the pairs of its micro-batch
    normalised = new["model"].get("image", {}).get("batch_norm") == "train"  # by its micro-batch
    if contrasted or normalised:
        free = [line for line in free if not line.startswith("batch.micro_pairs")]
    return free, [line for line in lines if line not in free]
