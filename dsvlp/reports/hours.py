"""Hours as tables, JSON and CSV. Torch-free, and without matplotlib: a login node answers at once."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from dsvlp.accounting.charges import REASONS, Charge
from dsvlp.accounting.comparison import Comparison, compare, sentence
from dsvlp.accounting.gather import Gathered
from dsvlp.accounting.hours import Total, by_week, sums, total, totals
from dsvlp.reports import table

LABELS = {
    "train": "training (productive)",
    "startup": "start-up",
    "data_wait": "waiting for data",
    "redone": "steps made again",
    "validate": "validation",
    "save": "saving",
    "pictures": "pictures",
    "failed": "failed attempts",
    "unused": "GPUs without a process",
    "unexplained": "unexplained",
    "unknown": "jobs of no run given",
}
ATTEMPTS_SHOWN = 40

Row = tuple[table.Cell, ...]


def text(found: Gathered, week: bool = False) -> str:
    """Returns the tables of each unit, the papers' hours, and the notes.

    Args:
        found: the charges.
        week: add sums by week and user.
    """
    if not found.charges:
        return "\n".join(["Nothing was billed.", *found.notes])
    blocks = []
    for unit in dict.fromkeys(charge.unit for charge in found.charges):
        blocks += _unit(unit, [charge for charge in found.charges if charge.unit == unit], week)
    blocks.append("\n".join(map(sentence, comparisons(found.charges))))
    blocks.append("\n".join(found.notes))
    return "\n\n".join(filter(None, blocks))


def _unit(unit: str, every: Sequence[Charge], week: bool) -> list[str]:
    runs = totals(every, lambda charge: charge.run)
    blocks = [_sums("run", runs, unit)]
    sweeps, users = totals(every, lambda charge: charge.sweep), totals(every, lambda charge: charge.user)
    blocks += [_sums("sweep", sweeps, unit)] if sweeps else []
    blocks += [_sums("user", users, unit)] if len(users) > 1 else []
    blocks += [_sums("week", weeks(every), unit)] if week else []
    if len(runs) > 1:
        blocks.append(_sums("", [total("all", every)], unit))
    blocks.append(where(total("all", every)))
    if len(every) <= ATTEMPTS_SHOWN:
        blocks.append(attempts(every))
    return blocks


def _sums(what: str, lines: Sequence[Total], unit: str) -> str:
    head = (what, f"{unit}-hours", "productive", "goodput", "starts", "pairs", "PFLOP", "MFU", "kWh")
    return table.text(head, [_words(_sum_row(line)) for line in lines])


def _sum_row(line: Total) -> Row:
    return (
        line.name,
        hours(line.billed),
        hours(line.productive),
        "" if line.goodput is None else f"{line.goodput:.1%}",
        str(line.charges) + (f" ({line.running} running)" if line.running else ""),
        round(line.samples),
        line.flops / 1e15,
        "" if line.mfu is None else f"{line.mfu:.1%} of {line.peak_kind}",
        "" if line.kwh is None else line.kwh,
    )


def where(whole: Total) -> str:
    """Returns the table of what the hours were spent on: productive first, then the losses by size."""
    losses = sorted((reason for reason in REASONS if reason != "train"), key=lambda r: -whole.spent[r])
    rows = [
        (LABELS[reason], hours(whole.spent[reason]), _share(whole.spent[reason], whole.billed))
        for reason in ("train", *losses)
        if whole.spent[reason]
    ]
    return table.text((f"where the {whole.unit}-hours went", "hours", "share"), rows)


def attempts(every: Sequence[Charge]) -> str:
    """Returns the table of all incarnations, oldest first."""
    head = ("began", "run", "job", "attempt", "outcome", "steps", "devices", "seconds", "productive", "by")
    rows = [
        (
            f"{datetime.fromtimestamp(charge.began):%m-%d %H:%M:%S}",
            charge.run,
            charge.job or "",
            ",".join(map(str, charge.attempts)),
            charge.outcome,
            "" if charge.to_step is None else f"{charge.from_step} -> {charge.to_step}",
            str(charge.devices),
            f"{charge.seconds:.0f}",
            _share(charge.spent["train"], charge.billed),
            charge.source,
        )
        for charge in every
    ]
    return table.text(head, rows)


def weeks(every: Sequence[Charge]) -> list[Total]:
    """Returns sums by week and user, oldest first; an incarnation that lies in two weeks is divided."""
    parts = sorted(by_week(every), key=lambda pair: pair[0])
    return sums((f"{week} {charge.user}", charge) for week, charge in parts)


def comparisons(every: Sequence[Charge]) -> list[Comparison | str]:
    """Returns each run that trained beside its paper, or why it cannot be."""
    out = []
    for run in totals(every, lambda charge: charge.run):
        own = [charge for charge in every if charge.run == run.name and charge.flops]
        if own:
            out.append(compare(run, own[-1]))
    return out


def to_json(found: Gathered) -> dict[str, Any]:
    """Returns everything as JSON: hours in sums, device-seconds in charges."""
    every = found.charges
    return {
        "format": 1,
        "made": datetime.now().astimezone().isoformat(timespec="seconds"),
        "all": [asdict(line) for line in totals(every, lambda charge: "all")],
        "runs": [asdict(line) for line in totals(every, lambda charge: charge.run)],
        "sweeps": [asdict(line) for line in totals(every, lambda charge: charge.sweep)],
        "users": [asdict(line) for line in totals(every, lambda charge: charge.user)],
        "weeks": [asdict(line) for line in weeks(every)],
        "papers": [c if isinstance(c, str) else asdict(c) for c in comparisons(every)],
        "charges": [{**asdict(charge), "billed": charge.billed} for charge in every],
        "notes": found.notes,
    }


def to_csv(every: Sequence[Charge]) -> str:
    """Returns one line an incarnation; device-seconds."""
    out = io.StringIO()
    flat = [_flat(charge) for charge in every]
    writer = csv.DictWriter(out, list(flat[0]) if flat else ["run"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flat(charge: Charge) -> dict[str, Any]:
    values = asdict(charge)
    spent = values.pop("spent")
    values["attempts"] = " ".join(map(str, charge.attempts))
    return {**values, "billed": charge.billed, **{f"spent_{reason}": spent[reason] for reason in REASONS}}


def hours(value: float) -> str:
    """Returns hours to a second's precision where they are few."""
    return f"{value:,.1f}" if abs(value) >= 100 else f"{round(value, 4) + 0.0:.4f}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _words(row: Row) -> Row:
    return tuple(map(table.show, row))
