"""What the benches share on the command line: where a result goes, and variants that take turns."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dsvlp.engine.bench_figures import FORMAT, joined
from dsvlp.launch import local
from dsvlp.reports import bench as reports

_path = click.Path(path_type=Path, dir_okay=False)

Variant = tuple[str, ...]
"""A recipe's name and its overrides, as on the command line."""

out_option = click.option("--json", "out", type=_path, help="Write the result to this file.")
compare_option = click.option("--compare", type=_path, help="Print the ratio to this saved result.")
against_option = click.option(
    "--against",
    multiple=True,
    metavar="'[RECIPE] [KEY=VALUE]...'",
    help="Measure this beside it: further overrides, or another recipe under the same ones and its own. "
    "May be given several times. All take turns, each time in a process of its own.",
)


def variant(name: str, overrides: tuple[str, ...], text: str) -> Variant:
    """Returns what `--against TEXT` measures beside `name overrides...`."""
    words = shlex.split(text)
    if words and "=" not in words[0]:
        name = words.pop(0)
    return (name, *overrides, *words)


def take_turns(
    bench: str,
    commands: Mapping[str, tuple[list[str], int]],
    repeats: int,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, dict[str, Any]] | int:
    """Lets the variants take turns, once a repeat, each in processes of its own.

    Args:
        bench: whose results they write.
        commands: variant -> its command, which understands --json, and on how many processes.
        repeats: turns.
        environment: what the processes inherit.

    Returns:
        variant -> its result, the turns joined; or the exit code of the first that failed.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory(prefix="dsvlp-bench-") as folder:
        path = Path(folder) / "one.json"
        for turn in range(repeats):
            for name, (command, processes) in commands.items():
                click.echo(f"\nturn {turn + 1} of {repeats}: {name}")
                code = local.launch([*command, "--json", str(path)], processes, environment)
                if code:
                    return code
                results[name].append(reports.read(path, bench))
    return {name: joined(some) for name, some in results.items()}


def finish(result: dict[str, Any], out: Path | None, saved: dict[str, Any] | None = None) -> None:
    """Prints a result, beside a saved one where there is one, and writes it."""
    for line in reports.show(result, saved):
        click.echo(line)
    _write(result, out)


def finish_variants(bench: str, results: dict[str, dict[str, Any]], out: Path | None) -> None:
    """Prints several variants side by side, and writes them."""
    click.echo("")
    for line in reports.side_by_side(results):
        click.echo(line)
    _write({"format": FORMAT, "bench": bench, "variants": results}, out)


def ready(out: Path | None) -> None:
    """Makes the folder of `--json`, so that it is not found missing after an hour."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)


def _write(value: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        out.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        click.echo(f"written to {out}")
