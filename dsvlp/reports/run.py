"""What a run's folder says, read without torch: recipe, numbers by step, scores, attempts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsvlp.accounting.ledger import Attempt, read_ledger
from dsvlp.errors import RunError
from dsvlp.recipe import Recipe, from_json
from dsvlp.types import DataFacts


@dataclass(frozen=True)
class Run:
    """A run as its files tell it.

    Attributes:
        folder: the run's folder.
        recipe: the resolved recipe.
        manifest: versions, git state, machine, processes, device; empty where the run wrote none.
        metrics: records of `metrics.jsonl` in order; each has "step", "samples" and named values.
        scores: contents of `scores.json`, None where the run was not evaluated.
        attempts: of the ledger, oldest first; the last may be running.
        facts: what the newest checkpoint says of the data, None where there is none.
    """

    folder: Path
    recipe: Recipe
    manifest: dict[str, Any]
    metrics: list[dict[str, Any]]
    scores: dict[str, Any] | None
    attempts: list[Attempt]
    facts: DataFacts | None = None

    @property
    def device(self) -> str:
        """Returns "GPU" or "CPU": what the hours are counted in."""
        return "GPU" if self.manifest.get("device") == "cuda" else "CPU"

    def names(self) -> list[str]:
        """Returns the names of all values, in the order of their first appearance."""
        axes = ("step", "samples", "device_seconds", "seconds")
        return list(dict.fromkeys(name for line in self.metrics for name in line if name not in axes))

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Returns steps and values of one name; NaN where the value was not finite."""
        points = [(line["step"], line[name]) for line in self.metrics if name in line]
        return [step for step, _ in points], [_number(value) for _, value in points]

    def last(self, name: str) -> float | None:
        """Returns the newest finite value of a name, None where there is none."""
        finite = [value for value in self.curve(name)[1] if math.isfinite(value)]
        return finite[-1] if finite else None

    def device_hours(self) -> float:
        """Returns the hours of all devices over all attempts, redone work included.

        As of the last sign of life; `dsvlp hours` tells what Slurm billed.
        """
        return sum(attempt.wall_seconds * attempt.processes for attempt in self.attempts) / 3600


def read(folder: Path) -> Run:
    """Returns the run of a folder.

    Raises:
        RunError: the folder holds no run, or one of its files is damaged.
    """
    if not (folder / "recipe.json").is_file():
        raise RunError(
            f"{folder} holds no run: it has no recipe.json",
            "a folder that `dsvlp train --run` made",
            "Check the path",
        )
    recipe = from_json(_json(folder / "recipe.json") or {}, str(folder / "recipe.json"))
    return Run(
        folder,
        recipe,
        _json(folder / "manifest.json") or {},
        _lines(folder / "metrics.jsonl"),
        _json(folder / "scores.json"),
        read_ledger(folder),
        _facts(folder / "checkpoints"),
    )


def _facts(checkpoints: Path) -> DataFacts | None:
    """Returns what the newest checkpoint's state says of the data; None also where it is damaged."""
    try:
        name = (checkpoints / "LATEST").read_text(encoding="ascii").strip()
        state = json.loads((checkpoints / name / "state.json").read_text(encoding="utf-8"))
        return DataFacts.from_json(state["facts"])
    except (OSError, ValueError, KeyError):
        return None


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}", "JSON", "Restore or delete it") from error
    return value


def _lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a file of JSON lines; a torn last line, as a kill leaves it, is no record."""
    if not path.exists():
        return []
    *whole, _torn = path.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in whole]
    except ValueError as error:
        raise RunError(
            f"{path} is damaged: {error}", "one JSON record a line", "Delete the bad line"
        ) from error


def _number(value: float | str) -> float:
    """Returns the number; JSON has no name for NaN and infinity, so they are written as words."""
    return float(value)
