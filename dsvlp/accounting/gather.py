"""Brings together what hours are made of: the ledgers of run folders and Slurm's accounting. Torch-free."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dsvlp.accounting import ledger, sacct
from dsvlp.accounting.charges import Charge, RunLedger, charges
from dsvlp.accounting.hours import clip
from dsvlp.accounting.sacct import Row
from dsvlp.errors import MissingDependency, RunError, SlurmError

DEPTH = 4  # SWEEP/members/RUN below a folder of runs


@dataclass(frozen=True)
class Gathered:
    """What was found.

    Attributes:
        charges: oldest first.
        notes: sentences on what is missing, late or odd.
    """

    charges: list[Charge]
    notes: list[str]


def gather(
    folders: Sequence[Path],
    *,
    user: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    others: bool = False,
) -> Gathered:
    """Returns the charges of the runs in `folders`.

    Args:
        folders: runs, sweeps, or folders of them.
        user: whose charges alone; None: everybody's.
        since: what lies before is cut off.
        until: what lies after is cut off.
        others: also this user's jobs since then whose run is in none of the folders.

    Raises:
        RunError: a folder holds no run.
        SlurmError: other jobs were asked for and the accounting does not answer.
    """
    runs, notes = read_runs(folders)
    found = sacct.of_user(user, since, until) if others and user and since else []
    rows, trouble = _rows(runs, found)
    every, oddities = charges(runs, rows)
    begin, end = (None if moment is None else moment.timestamp() for moment in (since, until))
    parts = (clip(charge, begin, end) for charge in every if user is None or charge.user == user)
    kept = [part for part in parts if part is not None]
    return Gathered(kept, [*notes, *trouble, *oddities, *_remarks(kept)])


def read_runs(folders: Sequence[Path]) -> tuple[list[RunLedger], list[str]]:
    """Returns (every run at and below the folders once; what of their ledgers could not be read).

    Raises:
        RunError: a folder holds no run.
    """
    runs: dict[Path, RunLedger] = {}
    notes = []
    for folder in folders:
        paths = list(find_runs(folder))
        if not paths:
            raise RunError(
                f"{folder} holds no run: no recipe.json, down to {DEPTH} folders deep",
                "a folder that `dsvlp train --run`, `dsvlp submit` or a sweep made",
                "Check the path",
            )
        for path in paths:
            if path.resolve() not in runs:
                runs[path.resolve()], problems = read_run(path)
                notes += problems
    return list(runs.values()), notes


def find_runs(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Yields the run folders at and below a folder, by name."""
    if any((folder / name).is_file() for name in ("recipe.json", "ledger.jsonl")):
        yield folder
    elif depth and folder.is_dir():
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.name.startswith("."):
                yield from find_runs(inner, depth - 1)


def read_run(path: Path) -> tuple[RunLedger, list[str]]:
    """Returns (a run, named by its path as given; what of its ledger could not be read)."""
    attempts, problems = ledger.scan(path)
    sweep = ledger.sweep_of(path) or (attempts[-1].sweep if attempts else None)
    try:
        system = str(_json(path / "recipe.json")["model"]["kind"])
    except (KeyError, TypeError):
        system = ""
    return RunLedger(str(path), system, attempts, sweep, frozenset(submitted_jobs(path))), problems


def submitted_jobs(path: Path) -> Iterator[str]:
    """Yields the jobs that were submitted for a run, by what `dsvlp submit` or its sweep noted.

    A job that ended before its run began left no trace in the ledger.
    """
    job = _json(path / "slurm" / "submitted.json").get("job")
    if job is not None:
        yield str(job)
    sweep = _json(path.resolve().parent.parent / "sweep.json")
    with contextlib.suppress(KeyError, TypeError):  # not a sweep's member, or of a format to come
        number = {member["name"]: member["index"] for member in sweep["members"]}[path.name]
        for each in sweep["submissions"]:
            if number in each["members"]:
                alone, place = len(each["members"]) == 1, each["members"].index(number)
                yield each["job"] if alone else f"{each['job']}_{place}"


def _json(path: Path) -> dict[str, Any]:
    """Returns a JSON object, an empty one where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _rows(runs: Sequence[RunLedger], found: list[Row]) -> tuple[list[Row], list[str]]:
    """Returns (what was found and the rows of the runs' jobs, a sentence where nobody could be asked)."""
    began = {(each.job, each.cluster) for run in runs for each in run.attempts if each.job is not None}
    jobs = {job for job, _ in began} | {job for run in runs for job in run.jobs}
    if not jobs:
        return found, []
    try:
        known = sacct.of_jobs(jobs)
    except (SlurmError, MissingDependency) as error:
        said = error.found.rstrip(".")
        return found, [f"Slurm's accounting could not be asked ({said}): the hours are the ledgers'."]
    # A run may come from another cluster, where its job's number was another job's.
    clusters = {job: cluster for job, cluster in began if cluster is not None}
    found = found + [row for row in known if clusters.get(row.job, row.cluster) == row.cluster]
    # A running job's second row is a moment older than its first.
    return list({(row.job, row.start): row for row in found}.values()), []


def _remarks(every: Sequence[Charge]) -> Iterator[str]:
    running = sum(charge.outcome == "running" for charge in every)
    if running:
        yield f"{running} still running: what their last minute was spent on is not told yet (unexplained)."
    trained = [charge for charge in every if charge.attempts]
    if any(charge.joules is None for charge in trained):
        yield "Energy is told where NVML counts it on every GPU: some of these attempts have none."
