"""How far a sweep is: each member's state, step, losses and hours, from Slurm and from the runs' folders."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dsvlp import slurm
from dsvlp.accounting.ledger import Attempt, read_ledger
from dsvlp.errors import MissingDependency, SlurmError
from dsvlp.files import read_lines
from dsvlp.launch import budget
from dsvlp.launch.sweep_folder import Member, Sweep

log = logging.getLogger(__name__)

OVER_AND_UNFINISHED = ("failed", "killed", "stopped", "never started", "over budget")
"""States in which a member neither finished nor will go on by itself."""


@dataclass(frozen=True)
class Progress:
    """One member of a sweep at this moment.

    Attributes:
        member: which.
        state: "waiting", "running", "finished", or one of `OVER_AND_UNFINISHED`.
        attempts: how often it began.
        step: steps that its curves have.
        loss: the last total loss, None where there is none.
        validation: the last total loss on the validation data, None where there is none.
        gpu_hours: billed over all its incarnations.
        error: why the last attempt failed, None where it did not.
    """

    member: Member
    state: str
    attempts: int
    step: int
    loss: float | None
    validation: float | None
    gpu_hours: float
    error: str | None


def read(sweep: Sweep) -> list[Progress]:
    """Returns every member's progress, in order; where Slurm does not answer, by the ledgers alone."""
    live, hours = _live(), budget.billed(sweep)
    is_over = (sweep.folder / budget.NOTE).exists()
    return [_read(sweep, member, live, hours[member.index], is_over) for member in sweep.members]


def state(attempts: Sequence[Attempt], job: str | None, knows_slurm: bool, is_over: bool) -> str:
    """Returns a member's state.

    Args:
        attempts: of its ledger.
        job: Slurm's state of its job, None where Slurm has no such job in hand.
        knows_slurm: Slurm was asked; else a lease decides who lives.
        is_over: the sweep's budget was reached.
    """
    outcome = attempts[-1].outcome if attempts else None
    if outcome == "finished":
        return "finished"
    if job is not None:
        return "waiting" if job == "PENDING" else "running"
    if outcome is None:
        return "over budget" if is_over else "never started"
    if outcome == "running" and not knows_slurm:
        return "running"
    if outcome == "stopped":
        return "over budget" if is_over else "stopped"
    return "failed" if outcome == "failed" else "killed"


def _read(
    sweep: Sweep, member: Member, live: dict[str, str] | None, gpu_hours: float, is_over: bool
) -> Progress:
    run = sweep.run(member)
    attempts = read_ledger(run)
    found = next((live[job] for job in sweep.jobs(member) if job in live), None) if live else None
    lines = read_lines(run / "metrics.jsonl")
    return Progress(
        member=member,
        state=state(attempts, found, live is not None, is_over),
        attempts=len(attempts),
        step=max((int(line["step"]) for line in lines), default=0),
        loss=_last(lines, "loss/total"),
        validation=_last(lines, "validation/loss/total"),
        gpu_hours=gpu_hours,
        error=attempts[-1].error if attempts else None,
    )


def _last(lines: Sequence[dict[str, object]], name: str) -> float | None:
    """Returns the newest finite value of a curve, None where there is none."""
    values = (line[name] for line in reversed(lines) if name in line)
    return next((v for v in values if isinstance(v, float) and math.isfinite(v)), None)


def _live() -> dict[str, str] | None:
    """Returns job -> state of this user's jobs that Slurm has in hand; None where it does not answer."""
    try:
        told = slurm.run(["squeue", "--me", "--array", "--noheader", "--format=%i|%T"])
    except (SlurmError, MissingDependency) as error:
        log.warning(
            "Slurm does not tell which jobs wait or run (%s): the ledgers alone are read", error.found
        )
        return None
    return dict(line.strip().split("|") for line in told.splitlines())
