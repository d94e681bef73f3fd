"""A run's folder: recipe.json, manifest.json, the lease, and what the ledger is told.

Rank 0 alone writes; the others learn its verdict. A folder with another recipe is never
overwritten: what may differ freely (layout, intervals, workers: what changes no sample and no
update) is logged, everything else needs `override`.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

from dsvlp import __version__, config, dist
from dsvlp.accounting import ledger
from dsvlp.engine.lease import Lease, identity
from dsvlp.errors import DsvlpError, RunError
from dsvlp.files import read_json, write_json
from dsvlp.origin import git_state
from dsvlp.recipe import Recipe
from dsvlp.recipe.changes import compare

log = logging.getLogger(__name__)
T = TypeVar("T")

LIBRARIES = ("torch", "deepspeed", "ffcv", "transformers", "timm", "numpy", "safetensors")


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
    """An open run: holds the lease, and keeps the ledger of this attempt.

    Args:
        path: the folder, made where absent.
        recipe: the resolved recipe.
        override: accept binding differences to the folder's recipe and store the new one.
        began: epoch seconds at which this attempt began; None: now.

    Attributes:
        attempt: this attempt's number, from 1.
        made: steps that earlier attempts had made, saved or not.

    Raises:
        RunError: the folder has another owner, another recipe, or foreign files.
    """

    def __init__(
        self, path: Path, recipe: Recipe, override: bool = False, began: float | None = None
    ) -> None:
        self.path = path
        self._recipe = recipe
        self._lease: Lease | None = None
        self._notes: dict[str, Any] = {"began": time.time() if began is None else began}
        self.attempt, self.made = on_rank_0(lambda: self._open(override))

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.path / "checkpoints"

    def _open(self, override: bool) -> tuple[int, int]:
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
        return self._begin(self._lease)

    def _begin(self, lease: Lease) -> tuple[int, int]:
        """Writes the dead owner's last line and this attempt's first; returns (its number, steps made)."""
        line = None if lease.previous is None else ledger.died(lease.previous)
        if line is not None:
            self._append(line)
        earlier = ledger.read_ledger(self.path)
        number = max((each.attempt for each in earlier), default=0) + 1
        self._notes |= {"attempt": number, **who(os.environ, self.path)}
        self._append({"event": "began", **self._notes})
        lease.note(**self._notes)
        lease.renew()
        return number, max((each.to_step or 0 for each in earlier), default=0)

    def _settle_recipe(self, existing: Path, override: bool) -> None:
        new = config.dump(self._recipe)
        if existing.exists():
            free, binding = compare(read_json(existing, "`dsvlp train --run`"), new)
            for line in free + binding:
                log.info("recipe differs from the run's: %s", line)
            if binding and not override and self._has_trained():
                raise RunError(
                    f"{self.path} holds a run of another recipe: {'; '.join(binding)}",
                    "the run's own recipe (workers, intervals and layout may differ)",
                    "Choose another --run folder, or add --override to go on with the new values",
                )
            if not binding and not free and (self.path / "manifest.json").exists():
                return
        write_json(existing, new)
        told = self.path / "manifest.json"
        # What the run started from stays true of it, whichever attempt goes on.
        began = read_json(told, "`dsvlp train`") if told.exists() and self._has_trained() else {}
        kept = {key: began[key] for key in ("start",) if key in began}
        write_json(told, manifest(self._recipe) | kept)

    def _has_trained(self) -> bool:
        """Returns whether there is anything to lose: a start that failed leaves a recipe and no step."""
        return any(self.checkpoints.glob("step-*"))

    def note(self, **values: Any) -> None:
        """Remembers fields of `ledger.Attempt` for this attempt's last line, and in the lease meanwhile."""
        if self._lease is not None:
            self._notes |= values
            self._lease.note(**values)

    def reached(self, step: int, seconds: Mapping[str, float]) -> None:
        """Notes how far this attempt is. Cheap enough for every step.

        Args:
            step: steps the run has.
            seconds: wall seconds of this attempt by phase.
        """
        first = self._notes.setdefault("from_step", step)
        pairs = self._recipe.batch.global_pairs
        self.note(
            from_step=first,
            to_step=step,
            samples=(step - first) * pairs,
            redone_samples=max(0, min(step, self.made) - first) * pairs,
            seconds=rounded(seconds),
        )

    def close(self, outcome: str, seconds: Mapping[str, float], error: BaseException | None = None) -> None:
        """Writes the ledger's last line of this attempt and gives the lease back.

        Args:
            outcome: "finished", "stopped" or "failed".
            seconds: wall seconds of this attempt by phase.
            error: why it failed; every rank that fails tells its own. The loss of another rank is no cause:
                that rank tells it, or was killed, and the attempt "died".
        """
        if error is not None and dist.is_lost_peer(error):
            outcome, error = "died", None
        said = None if error is None else ledger.describe(error)
        if self._lease is None:
            if said is not None:
                self._write(lambda: ledger.write_failure(self.path, self.attempt, dist.rank(), said))
            return
        end = {"seen": time.time(), "outcome": outcome, "seconds": rounded(seconds)}
        cause = {} if said is None else {"error": said, "rank": dist.rank()}
        self._append({"event": "ended", **self._notes, **end, **cause})
        self._lease.release()

    def _append(self, line: Mapping[str, Any]) -> None:
        self._write(lambda: ledger.append(self.path, line))

    def _write(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            log.warning("the ledger of %s could not be written: %s", self.path, error)


def who(environment: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Returns what a ledger's first line says of job, user, machine and devices."""
    device, world = dist.device(), dist.world_size()
    is_gpu = device.type == "cuda"
    me = identity(environment)
    return {
        **{name: me[name] for name in ("job", "restart", "host")},
        "cluster": environment.get("SLURM_CLUSTER_NAME"),
        "user": ledger.user_name(environment),
        "processes": world,
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if is_gpu else "",
        "gpus": world if is_gpu else 0,
        "sweep": ledger.sweep_of(folder),
    }


def rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns seconds by phase to the millisecond."""
    return {name: round(value, 3) for name, value in seconds.items()}


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
