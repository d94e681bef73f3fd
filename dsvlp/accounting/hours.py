"""Sums of charges: by run, sweep, user or week; between two moments. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta

from dsvlp.accounting.charges import REASONS, Charge

STEPS = ("train", "data_wait", "redone")
"""The reasons that MFU divides by: the time of steps."""


@dataclass(frozen=True)
class Total:
    """The sum of some charges of one unit.

    Attributes:
        name: the run, sweep, user or week.
        unit: "GPU" or "CPU process".
        charges: incarnations.
        running: of them still running.
        billed: device-hours paid for.
        spent: reason -> device-hours; they add up to `billed`.
        goodput: productive / billed, None where nothing was billed.
        samples: pairs trained on, each counted once.
        flops: model FLOP, work done again included.
        mfu: model FLOPs over what `peak_kind` gives in the time of steps, None where that is not known.
        peak_kind: "peak" of the data sheet, a measured "matmul", or both.
        kwh: energy of the GPUs, None unless every charge with a run's clock tells it.
    """

    name: str
    unit: str
    charges: int
    running: int
    billed: float
    spent: dict[str, float]
    goodput: float | None
    samples: float
    flops: float
    mfu: float | None
    peak_kind: str
    kwh: float | None

    @property
    def productive(self) -> float:
        """Device-hours of training steps that were made for the first time."""
        return self.spent["train"]


def clip(charge: Charge, since: float | None, until: float | None) -> Charge | None:
    """Returns the part of a charge between two moments, None where there is none.

    What an attempt did is spread evenly over its time: nobody knows it better.
    """
    begin = charge.began if since is None else max(charge.began, since)
    ended = charge.began + charge.seconds
    end = ended if until is None else min(ended, until)
    if begin == charge.began and end == ended:
        return charge
    if end <= begin:
        return None
    share = (end - begin) / charge.seconds
    return replace(
        charge,
        began=begin,
        seconds=end - begin,
        spent={reason: value * share for reason, value in charge.spent.items()},
        samples=charge.samples * share,
        redone_samples=charge.redone_samples * share,
        flops=charge.flops * share,
        joules=None if charge.joules is None else charge.joules * share,
    )


def by_week(every: Iterable[Charge]) -> Iterator[tuple[str, Charge]]:
    """Yields (ISO week of local time, the part of a charge in it)."""
    for charge in every:
        moment, end = charge.began, charge.began + charge.seconds
        while True:
            day = date.fromtimestamp(moment)
            monday = datetime.combine(day + timedelta(days=7 - day.weekday()), time()).timestamp()
            part = clip(charge, moment, monday)
            if part is not None:
                yield f"{day:%G-W%V}", part
            if end <= monday:
                break
            moment = monday


def totals(every: Iterable[Charge], name: Callable[[Charge], str | None]) -> list[Total]:
    """Returns the sums of the charges with the same name and unit; one without a name is left out."""
    return sums((name(charge), charge) for charge in every)


def sums(named: Iterable[tuple[str | None, Charge]]) -> list[Total]:
    """Returns the sums of the charges with the same name and unit, in order of appearance."""
    groups: dict[tuple[str, str], list[Charge]] = {}
    for name, charge in named:
        if name is not None:
            groups.setdefault((name, charge.unit), []).append(charge)
    return [total(name, group) for (name, _), group in groups.items()]


def total(name: str, group: Sequence[Charge]) -> Total:
    """Returns the sum of charges of one unit."""
    device_seconds = sum(charge.billed for charge in group)
    spent = {reason: sum(charge.spent[reason] for charge in group) / 3600 for reason in REASONS}
    possible = sum(
        charge.peak_flops * sum(charge.spent[reason] for reason in STEPS)
        for charge in group
        if charge.peak_flops
    )
    done = sum(charge.flops for charge in group if charge.peak_flops)
    energy = [charge.joules for charge in group if charge.attempts]
    known = [joules for joules in energy if joules is not None]
    return Total(
        name,
        group[0].unit,
        len(group),
        sum(charge.outcome == "running" for charge in group),
        device_seconds / 3600,
        spent,
        spent["train"] * 3600 / device_seconds if device_seconds else None,
        sum(charge.samples for charge in group),
        sum(charge.flops for charge in group),
        done / possible if possible else None,
        " and ".join(sorted({charge.peak_kind for charge in group} - {""})),
        sum(known) / 3.6e6 if known and len(known) == len(energy) else None,
    )
