"""GPU-hours that add up: what was billed, what of it was training, and where the rest went. Torch-free.

Two truths are kept apart. *Billed* is Slurm's: allocated GPUs x wall time of every incarnation, failed
ones too; without Slurm it is the ledger's. *Productive* is the run's own: seconds in training steps
that no earlier attempt had made, x GPUs. The two clocks meet in a `Charge`: its parts always add up
to what was billed, and what nobody can explain is a part of its own. The queue is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from dsvlp.accounting.clock import PHASES
from dsvlp.accounting.ledger import Attempt
from dsvlp.accounting.sacct import Row

REASONS = (*PHASES, "failed", "unused", "unexplained", "unknown")
"""Where device-seconds go. `train` is productive. `failed`: attempts that made no step, and what passed
after the last sign of life of one that failed. `unused`: allocated GPUs without a process. `unknown`: jobs
whose run's folder was not given."""

SLACK_SECONDS = 5.0
"""By so much a node's clock may differ from the controller's."""


@dataclass(frozen=True)
class RunLedger:
    """A run, as far as hours need it.

    Attributes:
        name: how tables call it.
        system: "svl", "fiber", ...; empty where the folder does not say.
        attempts: of its ledger, oldest first.
        sweep: the sweep that it is a member of.
        jobs: that were submitted for it, known also where they came to nothing.
    """

    name: str
    system: str
    attempts: Sequence[Attempt]
    sweep: str | None = None
    jobs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Charge:
    """What one incarnation of a job (without Slurm: one attempt) was billed, and what came of it.

    Attributes:
        run: the run's name; the job's where its run was not given.
        system: "svl", "fiber", ...
        sweep: the run's sweep, None for a run of its own.
        user: who is billed.
        job: Slurm's job, None without Slurm.
        attempts: the ledger's attempts within.
        source: "sacct", or "ledger" where Slurm has no row.
        outcome: of the last attempt; Slurm's state where there is none.
        began: epoch seconds.
        seconds: wall seconds.
        devices: allocated GPUs, or processes on CPU.
        unit: "GPU" or "CPU process".
        spent: reason -> device-seconds; they add up to `billed`.
        from_step: steps before.
        to_step: steps after.
        samples: pairs trained on for the first time.
        redone_samples: pairs trained on again.
        flops: model FLOP of all of them.
        peak_flops: FLOP/s of one device, None where not known.
        peak_kind: "peak" of the data sheet, or a measured "matmul".
        device_name: the driver's name of a GPU.
        joules: energy of the GPUs, None where it was not measured.
    """

    run: str
    system: str
    sweep: str | None
    user: str
    job: str | None
    attempts: tuple[int, ...]
    source: str
    outcome: str
    began: float
    seconds: float
    devices: int
    unit: str
    spent: Mapping[str, float]
    from_step: int | None = None
    to_step: int | None = None
    samples: float = 0
    redone_samples: float = 0
    flops: float = 0.0
    peak_flops: float | None = None
    peak_kind: str = ""
    device_name: str = ""
    joules: float | None = None

    @property
    def billed(self) -> float:
        """Device-seconds paid for."""
        return self.seconds * self.devices


def charges(runs: Sequence[RunLedger], rows: Iterable[Row]) -> tuple[list[Charge], list[str]]:
    """Returns (every charge, oldest first; sentences about what is not as it should be).

    Args:
        runs: the runs whose hours are asked for.
        rows: what sacct knows of their jobs, and of others.
    """
    rows_of: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.start):
        rows_of.setdefault(row.job, []).append(row)
    inside: dict[Row, list[tuple[RunLedger, Attempt]]] = {row: [] for own in rows_of.values() for row in own}
    owners: dict[str, RunLedger] = {}
    out: list[Charge] = []
    missing: list[str] = []
    for run in runs:
        owners |= dict.fromkeys([*run.jobs, *(each.job for each in run.attempts if each.job)], run)
        for attempt in run.attempts:
            home = find_row(attempt, rows_of.get(attempt.job or "", []))
            if home is not None:
                inside[home].append((run, attempt))
                continue
            out.append(of_attempt(run, attempt))
            missing += [attempt.job] if attempt.job is not None else []
    notes = [_late(missing)] if missing else []
    for row, pairs in inside.items():
        out += of_row(row, pairs) if pairs else [of_nothing(row, owners.get(row.job))]
        notes += _oddities(row, [attempt for _, attempt in pairs])
    return sorted(out, key=lambda charge: charge.began), notes


def find_row(attempt: Attempt, rows: Sequence[Row]) -> Row | None:
    """Returns the incarnation of its job that an attempt was part of, None where the accounting has none.

    The one in which it began; else the nearest, as far as clocks may differ.
    """

    def distance(row: Row) -> float:
        after = 0.0 if row.is_running else attempt.began - row.end
        return max(row.start - attempt.began, after, 0.0)

    nearest = min(reversed(rows), key=distance, default=None)
    return nearest if nearest is not None and distance(nearest) <= SLACK_SECONDS else None


def of_attempt(run: RunLedger, attempt: Attempt) -> Charge:
    """Returns the charge of an attempt by the ledger alone."""
    devices = (attempt.gpus, "GPU") if attempt.gpus else (attempt.processes, "CPU process")
    return _charge(run, [attempt], attempt.user, "ledger", attempt.began, attempt.wall_seconds, *devices)


def of_row(row: Row, pairs: Sequence[tuple[RunLedger, Attempt]]) -> list[Charge]:
    """Returns the charges of an incarnation: one a run, where several ran in it one after the other."""
    groups: dict[str, list[tuple[RunLedger, Attempt]]] = {}
    for run, attempt in sorted(pairs, key=lambda pair: pair[1].began):
        groups.setdefault(run.name, []).append((run, attempt))
    starts = [row.start, *(group[0][1].began for group in list(groups.values())[1:])]
    lengths = [b - a for a, b in pairwise([*starts, row.end])] if len(groups) > 1 else [row.seconds]
    out = []
    for group, began, seconds in zip(groups.values(), starts, lengths, strict=True):
        attempts = [attempt for _, attempt in group]
        if not row.is_running:  # the lease of a job that Slurm has ended is a dead one's
            attempts = [replace(a, outcome="died") if a.outcome == "running" else a for a in attempts]
        devices = _devices(row, attempts)
        out.append(_charge(group[0][0], attempts, row.user, "sacct", began, seconds, *devices))
    return out


def of_nothing(row: Row, owner: RunLedger | None) -> Charge:
    """Returns the charge of an incarnation in which no run of ours began.

    Args:
        row: the incarnation.
        owner: the run that its job was submitted for, None for a job of no run given.
    """
    known = owner.attempts if owner is not None else ()
    devices, unit = _devices(row, known)
    reason = "failed" if owner is not None and not row.is_running else "unknown"
    return Charge(
        run=owner.name if owner else f"job {row.name}",
        system=owner.system if owner else "",
        sweep=owner.sweep if owner else None,
        user=row.user,
        job=row.job,
        attempts=(),
        source="sacct",
        outcome="running" if row.is_running else row.state.lower(),
        began=row.start,
        seconds=row.seconds,
        devices=devices,
        unit=unit,
        spent=dict.fromkeys(REASONS, 0.0) | {reason: float(row.seconds * devices)},
    )


def _charge(
    run: RunLedger,
    attempts: Sequence[Attempt],
    user: str,
    source: str,
    began: float,
    seconds: float,
    devices: int,
    unit: str,
) -> Charge:
    first, last = attempts[0], attempts[-1]
    known = [attempt.joules for attempt in attempts if attempt.joules is not None]
    return Charge(
        run=run.name,
        system=run.system,
        sweep=run.sweep,
        user=user,
        job=first.job,
        attempts=tuple(attempt.attempt for attempt in attempts),
        source=source,
        outcome=last.outcome,
        began=began,
        seconds=seconds,
        devices=devices,
        unit=unit,
        spent=spend(began, seconds, devices, attempts),
        from_step=first.from_step,
        to_step=last.to_step,
        samples=sum(attempt.samples - attempt.redone_samples for attempt in attempts),
        redone_samples=sum(attempt.redone_samples for attempt in attempts),
        flops=sum(attempt.model_flops for attempt in attempts),
        peak_flops=next((each.peak_flops for each in attempts if each.peak_flops), None),
        peak_kind=last.peak_kind,
        device_name=last.device_name,
        joules=sum(known) if len(known) == len(attempts) else None,
    )


def _devices(row: Row, attempts: Sequence[Attempt]) -> tuple[int, str]:
    """Returns (devices that are billed, their unit)."""
    gpus = row.gpus or max((each.gpus for each in attempts), default=0)
    if gpus:
        return gpus, "GPU"
    return max((each.processes for each in attempts), default=1), "CPU process"


def spend(began: float, seconds: float, devices: int, attempts: Sequence[Attempt]) -> dict[str, float]:
    """Returns reason -> device-seconds of an allocation; they add up to seconds x devices.

    Args:
        began: epoch seconds of the allocation.
        seconds: its wall time.
        devices: allocated devices.
        attempts: what ran in it, oldest first.
    """
    spent = dict.fromkeys(REASONS, 0.0)
    billed = seconds * devices
    if all(is_barren(attempt) for attempt in attempts):
        return spent | {"failed": float(billed)}
    for attempt in attempts:
        for phase, own in attempt.seconds.items():
            spent[phase if phase in PHASES else "unexplained"] += own * min(devices, attempt.processes)
    used = min(devices, max(attempt.processes for attempt in attempts))
    spent["unused"] = float(seconds * (devices - used))
    # The batch script, srun and Slurm's own work: the run's clock was not there yet.
    spent["startup"] += max(0.0, attempts[0].began - began) * used
    rest = billed - sum(spent.values())
    # Below zero by a rounded second, or where a node's clock is not the controller's.
    was_lost = attempts[-1].outcome in ("failed", "died") and rest > 0
    spent["failed" if was_lost else "unexplained"] += rest
    return spent


def is_barren(attempt: Attempt) -> bool:
    """Returns whether an attempt failed before it made a step."""
    made_none = attempt.to_step is None or attempt.to_step == attempt.from_step
    return attempt.outcome in ("failed", "died") and made_none


def _late(jobs: Sequence[str]) -> str:
    """Returns the sentence about attempts of jobs that the accounting does not know."""
    named = ", ".join(list(dict.fromkeys(jobs))[:8])
    return (
        f"Slurm's accounting has no row yet for {len(jobs)} attempt(s) of job {named}: it lags by seconds, "
        "or has forgotten them; their hours are the ledger's, without what passed before and after the run."
    )


def _oddities(row: Row, attempts: Sequence[Attempt]) -> Iterator[str]:
    if not row.gpus and any(attempt.gpus for attempt in attempts):
        yield (
            f"Slurm's accounting counts no GPUs for job {row.job} (AccountingStorageTRES lacks gres/gpu): "
            "those that the run saw are taken."
        )
    late = [a for a in attempts if not row.is_running and a.seen > row.end + SLACK_SECONDS]
    early = [a for a in attempts if a.began < row.start - 1]
    if late or early:
        off = max([a.seen - row.end for a in late] + [row.start - a.began for a in early])
        yield f"The clock of job {row.job}'s node and the controller's differ by {off:.0f} s or more."
