"""`dsvlp hours`: GPU-hours billed, productive and lost."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import click

from dsvlp.accounting.gather import gather
from dsvlp.accounting.hours import totals
from dsvlp.accounting.ledger import user_name
from dsvlp.errors import RunError
from dsvlp.reports import hours

RUNS, DAYS = Path("runs"), 30
A_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("folders", nargs=-1, metavar="[RUN|SWEEP]...", type=click.Path(path_type=Path))
@click.option("--since", type=click.DateTime(), help="Only hours after this local time.")
@click.option("--until", type=click.DateTime(), help="Only hours before this local time.")
@click.option("--user", help="Only this user's hours; without folders: of all jobs that Slurm knows.")
@click.option("--week", is_flag=True, help="Sums by week and user as well.")
@click.option("--json", "json_file", type=A_FILE, help="Write everything into this file.")
@click.option("--csv", "csv_file", type=A_FILE, help="Write a line a start into this file.")
@click.option("--picture", type=A_FILE, help="Draw where the hours went: .png, .pdf or .svg.")
def command(
    folders: tuple[Path, ...],
    since: datetime | None,
    until: datetime | None,
    user: str | None,
    week: bool,
    json_file: Path | None,
    csv_file: Path | None,
    picture: Path | None,
) -> None:
    """Tell GPU-hours billed (Slurm's accounting, every start), productive (the runs' clocks), and lost.

    RUN or SWEEP is a folder with runs in it, however deep. Without any: the jobs that Slurm knows of you
    (or --user) in the last 30 days (or --since), and the runs under runs/. Without Slurm the runs' own
    ledgers serve. The time in the queue is never counted.
    """
    others = not folders
    if others:
        user, since = user or user_name(), since or datetime.now() - timedelta(days=DAYS)
        folders = (RUNS,) if RUNS.is_dir() else ()
    found = gather(folders, user=user, since=since, until=until, others=others)
    click.echo(hours.text(found, week))
    if json_file is not None:
        _write(json_file, json.dumps(hours.to_json(found), indent=1) + "\n")
    if csv_file is not None:
        _write(csv_file, hours.to_csv(found.charges))
    if picture is not None and found.charges:
        from dsvlp.reports.hours_picture import draw  # imports matplotlib: only where it draws

        lines = hours.weeks(found.charges) if week else totals(found.charges, lambda charge: charge.run)
        draw([line for line in lines if line.unit == lines[0].unit], picture)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}", fix="Check space and rights") from error
