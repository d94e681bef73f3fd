"""What the benches share on the command line: options, where a result goes, variants that take turns."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from dsvlp.engine.bench_figures import FORMAT, joined
from dsvlp.launch import local
from dsvlp.reports import bench as reports

_path = click.Path(path_type=Path)
_file = click.Path(path_type=Path, dir_okay=False)

Variant = tuple[str, ...]
"""A recipe's name and its overrides, as on the command line."""

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

count = click.IntRange(min=1)


def options(*each: Decorator) -> Decorator:
    """Returns one decorator of several options, in the order in which `--help` shows them."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(each):
            command = option(command)
        return command

    return decorate


recipe_arguments = options(
    click.argument("name", metavar="RECIPE"),
    click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]..."),
)
result_options = options(
    click.option("--json", "out", type=_file, help="Write the result to this file."),
    click.option("--compare", type=_file, help="Print the ratio to this saved result."),
)


def step_options(steps: int, warmup: int, repeats: int) -> Decorator:
    """Returns the options of how many steps are measured, with these defaults."""
    return options(
        click.option("--steps", type=count, default=steps, show_default=True, help="Steps of a measurement."),
        click.option(
            "--warmup", type=count, default=warmup, show_default=True, help="Not counted before it."
        ),
        click.option("--repeats", type=count, default=repeats, show_default=True, help="Measurements."),
    )


def image_options(seconds: float, repeats: int, batch: int) -> Decorator:
    """Returns the options of which images are measured and for how long, with these defaults."""
    return options(
        click.option("--data", type=_path, help="Measure on the images of this .beton."),
        click.option("--photographs", type=_path, help="Or on copies of this folder's JPEGs."),
        click.option("--seconds", default=seconds, show_default=True, help="Of each measurement."),
        click.option("--repeats", type=count, default=repeats, show_default=True, help="Turns of all."),
        click.option(
            "--size", type=count, default=384, show_default=True, help="Side of the output, pixels."
        ),
        click.option("--batch", type=count, default=batch, show_default=True, help="Images a batch."),
        click.option("--images", type=count, default=512, show_default=True, help="How many different ones."),
    )


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


def begin(bench: str, out: Path | None, compare: Path | None) -> dict[str, Any] | None:
    """Returns the saved result of `--compare`, and makes the folder of `--json`: neither fails after an hour.

    Raises:
        RunError: there is no result of this bench in the file.
    """
    saved = reports.read(compare, bench) if compare is not None else None
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    return saved


def source(data: Path | None, photographs: Path | None) -> Path:
    """Returns which of the two is given; `UsageError` where it is not exactly one."""
    given = [path for path in (data, photographs) if path is not None]
    if len(given) != 1:
        raise click.UsageError("give either --data X.beton or --photographs FOLDER")
    return given[0]


def _write(value: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        out.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        click.echo(f"written to {out}")
