"""A run's folder: recipe.json, manifest.json, the lease and the ledger.

Rank 0 alone writes; the others learn its verdict. A folder with another recipe is never
overwritten: what may differ freely (layout, intervals, workers: what changes no sample and no
update) is logged, everything else needs `override`.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from dsvlp import __version__, config, dist
from dsvlp.engine.lease import Lease
from dsvlp.errors import DsvlpError, RunError
from dsvlp.recipe import Recipe

log = logging.getLogger(__name__)
T = TypeVar("T")

FREE = (
    "description",
    "batch.micro_pairs",
    "checkpoint.",
    "data.max_bad_share",
    "data.prefetch",
    "data.timeout_seconds",
    "data.workers",
    "engine.activation_checkpointing",
    "engine.max_skipped_steps",
    "engine.watchdog_seconds",
    "engine.zero",
    "watch.",
)
"""Keys (or tables) that may differ between attempts: they change neither samples nor updates."""

LIBRARIES = ("torch", "deepspeed", "ffcv", "transformers", "timm", "numpy", "safetensors")


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Returns the differences of two resolved recipes as (free, binding), one line each."""
    lines = config.differences(old, new)
    free = [line for line in lines if line.startswith(FREE)]
    if new["objectives"].get("itc"):  # the micro-batch is what a pair is contrasted with
        free = [line for line in free if not line.startswith("batch.micro_pairs")]
    return free, [line for line in lines if line not in free]


def on_rank_0(work: Callable[[], T]) -> T:
    """Returns rank 0's result on every rank; where it fails, all raise its error. Every rank must call."""
    verdict: tuple[T | None, DsvlpError | None] = (None, None)
    if dist.rank() == 0:
        try:
            verdict = (work(), None)
        except DsvlpError as error:
            verdict = (None, error)
        except OSError as error:
            verdict = (
                None,
                RunError(f"{error.filename or 'a file'}: {error.strerror}", fix="Check space and rights"),
            )
    result, refusal = dist.broadcast_object(verdict)
    if refusal is not None:
        raise refusal
    return result  # type: ignore[no-any-return]


class RunFolder:
    """An open run; a context manager that holds the lease and writes one ledger line an attempt.

    Args:
        path: the folder, made where absent.
        recipe: the resolved recipe.
        override: accept binding differences to the folder's recipe and store the new one.

    Raises:
        RunError: the folder has another owner, another recipe, or foreign files.
    """

    def __init__(self, path: Path, recipe: Recipe, override: bool = False) -> None:
        self.path = path
        self._recipe = recipe
        self._lease: Lease | None = None
        self._began = time.time()
        self._attempt: dict[str, Any] = {}
        on_rank_0(lambda: self._open(override))

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.path / "checkpoints"

    def _open(self, override: bool) -> None:
        existing = self.path / "recipe.json"
        if self.path.is_dir() and any(self.path.iterdir()) and not existing.exists():
            raise RunError(
                f"{self.path} holds files but no run (no recipe.json)",
                "a new, an empty or a run's folder",
                "Choose another --run folder",
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._lease = Lease(self.path)
        try:
            self._settle_recipe(existing, override)
        except DsvlpError:
            self._lease.release()
            raise
        self._close_dead_attempt()
        self._attempt = {
            "attempt": len(read_ledger(self.path)) + 1,
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "processes": dist.world_size(),
            "device": dist.device().type,
        }
        self._lease.note(**self._attempt)
        self._lease.renew()

    def _settle_recipe(self, existing: Path, override: bool) -> None:
        new = config.dump(self._recipe)
        if existing.exists():
            free, binding = compare(_read_json(existing), new)
            for line in free + binding:
                log.info("recipe differs from the run's: %s", line)
            if binding and not override and self._has_trained():
                raise RunError(
                    f"{self.path} holds a run of another recipe: {'; '.join(binding)}",
                    "the run's own recipe (workers, intervals and layout may differ)",
                    "Choose another --run folder, or add --override to go on with the new values",
                )
            if not binding and not free:
                return
        write_json(existing, new)
        write_json(self.path / "manifest.json", manifest(self._recipe))

    def _has_trained(self) -> bool:
        """Returns whether there is anything to lose: a start that failed leaves a recipe and no step."""
        return any(self.checkpoints.glob("step-*"))

    def _close_dead_attempt(self) -> None:
        assert self._lease is not None
        dead = self._lease.previous
        if dead is not None and dead["notes"]:
            seconds = dead["renewed"] - datetime.fromisoformat(dead["notes"]["began"]).timestamp()
            self._append({**dead["notes"], "outcome": "died", "seconds": round(max(seconds, 0.0), 1)})

    def reached(self, step: int) -> None:
        """Remembers the step of this attempt, for the ledger."""
        self._attempt.setdefault("from_step", step)
        self._attempt["to_step"] = step
        if self._lease is not None:
            self._lease.note(**self._attempt)

    def close(self, outcome: str, phases: dict[str, float]) -> None:
        """Writes the ledger's line and gives the lease back.

        Args:
            outcome: "finished", "stopped", or "failed: ...".
            phases: wall seconds of the run by phase, all attempts.
        """
        if self._lease is None:
            return
        seconds = time.time() - self._began
        rounded = {name: round(value, 3) for name, value in phases.items()}
        self._append(
            {
                **self._attempt,
                "outcome": outcome,
                "seconds": round(seconds, 1),
                "run_seconds_by_phase": rounded,
            }
        )
        self._lease.release()

    def _append(self, line: dict[str, Any]) -> None:
        try:
            with (self.path / "ledger.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            log.warning("the ledger of %s could not be written: %s", self.path, error)


def read_ledger(folder: Path) -> list[dict[str, Any]]:
    """Returns one record an ended attempt, oldest first."""
    path = folder / "ledger.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def manifest(recipe: Recipe) -> dict[str, Any]:
    """Returns what made the run: recipe hash, versions, git state, machine, command line."""
    return {
        "format": 1,
        "recipe_hash": config.digest(recipe),
        "versions": versions(),
        "git": git_state(),
        "host": platform.node(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "processes": dist.world_size(),
        "device": dist.device().type,
        "command": sys.argv,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python, ourselves and the libraries that numbers depend on."""
    found = {"python": platform.python_version(), "dsvlp": __version__}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def git_state() -> dict[str, str | bool] | None:
    """Returns commit and whether files differ from it; None where the package lies in no checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root)]
    try:
        commit, status = (
            subprocess.run(
                [*command, *verb], capture_output=True, text=True, timeout=20, check=True
            ).stdout.strip()
            for verb in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(status)}


def write_json(path: Path, value: Any) -> None:
    """Replaces a small JSON file as a whole.

    Raises:
        RunError: the disk refuses.
    """
    aside = path.with_name(f".{path.name}.partial")
    try:
        aside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}", fix="Check space and rights") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(
            f"{path} does not exist", "a folder that `dsvlp train --run` made", "Check the path"
        ) from error
    except ValueError as error:
        raise RunError(
            f"{path} is damaged: {error}", "JSON", "Restore it or choose another folder"
        ) from error
    return value
