"""A run's report: one HTML file that needs no other file, no network and no script."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from datetime import datetime

from dsvlp import config
from dsvlp.accounting import flops
from dsvlp.reports import curves, table
from dsvlp.reports.run import Run

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto;
  padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: .5rem 0; }
th, td { padding: .15rem .8rem .15rem 0; text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
tr:nth-child(even) { background: #f6f6f6; } img { max-width: 100%; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: .5rem; }
"""

UNDRAWN = ("validation/constant", "validation/count")  # they do not change; the table has them
ONE_EACH = ("optimizer", "throughput")  # a rate and a norm share no axis

Row = tuple[table.Cell, ...]


def summary(run: Run) -> list[Row]:
    """Returns (what, value) rows: how far, how fast, how long, on what."""
    last = run.metrics[-1] if run.metrics else {"step": 0, "samples": 0}
    rows: list[Row] = [
        ("step", f"{last['step']:,} of {run.recipe.schedule.steps:,}"),
        ("pairs seen", int(last["samples"])),
        (f"{run.device}-hours, all attempts", run.device_hours()),
        ("attempts", len(run.attempts)),
        ("processes", run.manifest.get("processes", "not recorded")),
        ("parameters by formula", flops.parameters(run.recipe, run.facts)),
        ("GFLOP a pair, full text length", flops.train_flops(run.recipe, facts=run.facts) / 1e9),
    ]
    wanted = [name for name in run.names() if name.startswith("throughput/")]
    rows += [(name.split("/", 1)[1], value) for name in wanted if (value := run.last(name)) is not None]
    return rows


LOSSES_HEAD = ("objective", "training", "validation", "best constant", "accuracy", "constant's")


def objective_name(name: str, negatives: str | None) -> str:
    """Returns how tables call an objective: of ITM, which mismatched pairs it was measured on."""
    return f"{name}, hard negatives ({negatives})" if negatives not in (None, "loader") else name


def losses(run: Run) -> list[Row]:
    """Returns a row an objective under `LOSSES_HEAD`; a cell that was never measured is empty."""

    def last(name: str) -> table.Cell:
        value = run.last(name)
        return "" if value is None else value

    return [
        (
            objective_name(name, getattr(table_, "negatives", None)),
            last(f"loss/{name}"),
            last(f"validation/loss/{name}"),
            last(f"validation/constant/{name}"),
            last(f"validation/metrics/{name}/accuracy"),
            last(f"validation/constant/{name}/accuracy"),
        )
        for name, table_ in run.recipe.objectives.enabled().items()
    ]


GATES_HEAD = ("pair of the fusion plan", "image reads text", "text reads image")


def gates(run: Run) -> list[Row]:
    """Returns a row a fused pair under `GATES_HEAD`: its gates at the last log step; empty without gates."""
    pairs = sorted(int(name.rsplit("/", 1)[1]) for name in run.names() if name.startswith("gates/image/"))
    found = [(str(k), run.last(f"gates/image/{k}"), run.last(f"gates/text/{k}")) for k in pairs]
    return [(k, *("" if value is None else value for value in values)) for k, *values in found]


ATTEMPTS_HEAD = ("attempt", "began", "host", "Slurm job", "processes", "steps", "minutes", "outcome", "time")


def attempts(run: Run) -> list[Row]:
    """Returns a row an attempt under `ATTEMPTS_HEAD`, oldest first; its time by phase, the longest first."""
    return [
        (
            str(attempt.attempt),
            f"{datetime.fromtimestamp(attempt.began):%Y-%m-%d %H:%M:%S}",
            attempt.host,
            attempt.job or "",
            attempt.processes,
            "" if attempt.to_step is None else f"{attempt.from_step} to {attempt.to_step}",
            attempt.wall_seconds / 60,
            attempt.outcome + (f": {attempt.error}" if attempt.error else ""),
            phases(attempt.seconds),
        )
        for attempt in run.attempts
    ]


def phases(seconds: Mapping[str, float]) -> str:
    """Returns the shares of an attempt's phases, the longest first, those under half a percent left out."""
    whole = sum(seconds.values())
    by_size = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {value / whole:.0%}" for name, value in by_size if value > whole / 200)


def scores(run: Run) -> list[Row]:
    """Returns (score, value) rows of `scores.json`, nested names joined by a slash."""
    return list(_flat(run.scores or {}, ""))


def _flat(value: object, name: str) -> Iterator[Row]:
    if isinstance(value, dict) and "interval_95" in value:
        low, high = value["interval_95"]
        chance = f", chance {value['chance']:.1%}" if "chance" in value else ""
        yield name, f"{value['value']:.1%} (95%: {low:.1%} to {high:.1%}, of {value['total']}{chance})"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}/{key}" if name else str(key))
    elif isinstance(value, bool | None):
        yield name, str(value)
    elif isinstance(value, int | float | str):
        yield name, value
    else:
        yield name, json.dumps(value)


def groups(run: Run) -> dict[str, list[str]]:
    """Returns a picture's title -> the names of its curves: those that differ in their last word."""
    out: dict[str, list[str]] = {}
    for name in run.names():
        group = name.rsplit("/", 1)[0]
        if not group.startswith(UNDRAWN):
            out.setdefault(name if group in ONE_EACH else group, []).append(name)
    return out


def time_split(run: Run) -> dict[str, float]:
    """Returns part of a step -> mean share of the wall time, over all log steps.

    The parts add up to 1; an objective's work on the host ("spl/waiting") overlaps with them.
    """
    names = [name for name in run.names() if name.startswith("time/") and name != "time/save_stall"]
    means = {name.split("/", 1)[1]: _mean(run.curve(name)[1]) for name in names}
    whole = sum(mean for part, mean in means.items() if "/" not in part)
    return {part: mean / whole for part, mean in means.items()} if whole else {}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def page(run: Run) -> str:
    """Returns the report."""
    name = html.escape(run.folder.resolve().name)
    split = [(part, f"{share:.1%}") for part, share in time_split(run).items()] or [("not recorded", "")]
    fusion = [("Gates of the fusion", table.to_html(GATES_HEAD, rows))] if (rows := gates(run)) else []
    sections = [
        ("Summary", table.to_html(("", "value"), summary(run))),
        ("Losses", table.to_html(LOSSES_HEAD, losses(run))),
        *fusion,
        ("Scores", _scores_section(run)),
        ("Curves", f'<div class="pictures">{"".join(_pictures(run))}</div>'),
        ("Time split of a step", table.to_html(("part", "share"), split)),
        ("Attempts", _attempts(run)),
        ("Machine and versions", f"<pre>{html.escape(json.dumps(run.manifest, indent=1))}</pre>"),
        ("Recipe", f"<pre>{html.escape(json.dumps(config.dump(run.recipe), indent=1))}</pre>"),
    ]
    body = "".join(f"<h2>{title}</h2>{content}" for title, content in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{name}</title><style>{STYLE}</style></head>"
        f"<body><h1>{name}</h1><p>{html.escape(run.recipe.description)}</p>{body}</body></html>\n"
    )


def _scores_section(run: Run) -> str:
    if run.scores is None:
        return "<p>Not evaluated yet: <code>dsvlp evaluate</code> writes scores.json.</p>"
    return table.to_html(("score", "value"), scores(run))


def _attempts(run: Run) -> str:
    if not run.attempts:
        return "<p>None has begun yet.</p>"
    return table.to_html(ATTEMPTS_HEAD, attempts(run))


def _pictures(run: Run) -> Iterator[str]:
    for title, names in groups(run).items():
        drawn = {name.rsplit("/", 1)[-1]: run.curve(name) for name in names}
        yield curves.picture(title, drawn, smoothed=title.startswith(("loss", "metrics")))
