"""`dsvlp sweep`: how far a sweep is, and its failed members started again. Sweeps are made in Python."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from dsvlp.launch import progress, sweep_folder
from dsvlp.launch import sweep as sweeps
from dsvlp.launch.progress import Progress
from dsvlp.reports import table

FOLDER = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))


@click.group()
def command() -> None:
    """Show a sweep, or start its failed members again. slurm/sweep.py shows how a sweep is made."""


@command.command()
@FOLDER
@click.option("--json", "as_json", is_flag=True, help="One JSON list instead of a table.")
def status(folder: Path, as_json: bool) -> None:
    """Print each member's state, step, losses and hours."""
    sweep = sweep_folder.read(folder)
    told = progress.read(sweep)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(each) for each in told], indent=1))
        return
    for line in lines(sweep, told):
        click.echo(line)


@command.command()
@FOLDER
@click.option("--budget", type=float, help="A new budget in GPU-hours; by default the old one.")
def retry(folder: Path, budget: float | None) -> None:
    """Submit the members again that failed, were killed or never started; the others are left alone."""
    sweep = sweeps.retry(folder, budget)
    started = sweep.submissions[-1]
    click.echo(f"job {started.job}: member {', '.join(map(str, started.members))}")


def lines(sweep: sweep_folder.Sweep, told: list[Progress]) -> list[str]:
    """Returns the table, why members failed, the best one, and what was spent."""
    keys = list(dict.fromkeys(key for each in told for key in each.member.values))
    head = ("member", *keys, "state", "starts", "step", "loss", "validation", "GPU-hours")
    out = [table.text(head, [_row(each, keys) for each in told])]
    out += [f"member {each.member.index}: {each.error}" for each in told if each.error]
    measured = [each for each in told if each.validation is not None]
    if measured:
        best = min(measured, key=lambda each: each.validation or 0.0)
        out.append(f"lowest validation loss: member {best.member.index}, {best.validation:.4f}")
    limit = "" if sweep.budget_gpu_hours is None else f" of {sweep.budget_gpu_hours:g}"
    out.append(f"{sum(each.gpu_hours for each in told):.4g}{limit} GPU-hours")
    return out


def _row(each: Progress, keys: list[str]) -> tuple[table.Cell, ...]:
    values = (json.dumps(each.member.values[key]) if key in each.member.values else "" for key in keys)
    losses = ("" if loss is None else f"{loss:.4f}" for loss in (each.loss, each.validation))
    return (
        each.member.index,
        *values,
        each.state,
        each.attempts,
        each.step,
        *losses,
        f"{each.gpu_hours:.4f}",
    )
