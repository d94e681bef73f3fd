"""`dsvlp report`: a run's numbers as a page and as a short table."""

from __future__ import annotations

from pathlib import Path

import click

from dsvlp.reports import html, run, table


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
def command(folder: Path) -> None:
    """Write RUN/report.html and print its table."""
    told = run.read(folder)
    target = folder / "report.html"
    target.write_text(html.page(told), encoding="utf-8")
    _print(("", "value"), html.summary(told))
    _print(html.LOSSES_HEAD, html.losses(told))
    _print(html.GATES_HEAD, html.gates(told))
    _print(("score", "value"), html.scores(told))
    click.echo(target)


def _print(head: tuple[str, ...], rows: list[html.Row]) -> None:
    if rows:
        click.echo(table.text(head, [tuple(map(table.show, row)) for row in rows]) + "\n")
