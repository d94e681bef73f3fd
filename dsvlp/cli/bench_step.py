"""`dsvlp bench step`: what a recipe's training step costs on this machine."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from dsvlp import config, recipe
from dsvlp.engine.bench_figures import FORMAT
from dsvlp.errors import RunError
from dsvlp.launch import local
from dsvlp.reports import table

_ABOUT = ("hardware", "settings", "versions")
_path = click.Path(path_type=Path, dir_okay=False)
_count = click.IntRange(min=1)


@click.command()
@click.argument("name", metavar="RECIPE")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--nproc", type=_count, help="Processes; by default one a GPU, or one.")
@click.option("--steps", type=_count, default=10, show_default=True, help="Optimizer steps of a repeat.")
@click.option(
    "--warmup", type=_count, default=3, show_default=True, help="Steps before the first repeat, not counted."
)
@click.option("--repeats", type=_count, default=5, show_default=True, help="Measurements.")
@click.option("--json", "out", type=_path, help="Write the result to this file.")
@click.option("--compare", type=_path, help="Print the ratio to this saved result.")
def command(
    name: str,
    overrides: tuple[str, ...],
    nproc: int | None,
    steps: int,
    warmup: int,
    repeats: int,
    out: Path | None,
    compare: Path | None,
) -> None:
    """Measure training steps of RECIPE: time split, pairs/s, model FLOPs, MFU, memory.

    Runs real steps on the recipe's data (the synthetic world where it has none) and saves nothing.
    Starts its own processes unless torchrun, deepspeed or srun did. MFU is the share of the GPU's
    peak; on a CPU it is the share of a matrix product's rate, measured in the same command.
    """
    resolved = recipe.load(name, overrides)
    saved = read(compare) if compare is not None else None
    launched = local.is_launched(os.environ)
    processes = nproc or local.default_processes()
    if not launched:
        recipe.accumulation(resolved, processes)
    if not launched and processes > 1:
        options = {"--steps": steps, "--warmup": warmup, "--repeats": repeats, "--json": out}
        given = {**options, "--compare": compare}
        pairs = [text for key, value in given.items() if value is not None for text in (key, str(value))]
        sys.exit(local.launch(local.own_command(["bench", "step", name, *overrides, *pairs]), processes))
    local.adopt_slurm(os.environ)
    local.watch_lifeline()
    code = local.guard(lambda: _bench(resolved, (steps, warmup, repeats), out, saved))
    if launched:
        local.leave(code)
    sys.exit(code)


def _bench(
    resolved: recipe.Recipe, lengths: tuple[int, int, int], out: Path | None, saved: dict[str, Any] | None
) -> int:
    from dsvlp import dist, log  # what follows imports torch: only in a process that measures
    from dsvlp.engine.bench_step import Lengths, bench
    from dsvlp.engine.run_folder import write_json

    log.setup(int(os.environ.get("RANK", "0")))
    result = bench(resolved, Lengths(*lengths))
    if dist.rank() == 0:
        for line in show(result, saved):
            click.echo(line)
        if out is not None:
            write_json(out, result)
            click.echo(f"written to {out}")
    return 0


def read(path: Path) -> dict[str, Any]:
    """Returns a saved result.

    Raises:
        RunError: there is none in this file.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["format"] == FORMAT and {"figures", "recipe", *_ABOUT} <= saved.keys():
            return dict(saved)
        problem = f"its format is {saved['format']}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise RunError(
        f"--compare {path} holds no result of `dsvlp bench step`: {problem}",
        f"a file of format {FORMAT} that --json wrote",
        "Measure again with --json",
    )


def show(result: dict[str, Any], saved: dict[str, Any] | None) -> list[str]:
    """Returns the lines to print: the table, what it was measured on, and how the saved one differs."""
    before = {figure["name"]: figure for figure in saved["figures"]} if saved is not None else {}
    head = ["", "unit", "median", "lowest", "highest", *(["saved", "ratio to saved"] if saved else [])]
    rows = []
    for figure in result["figures"]:
        row = [figure["name"], figure["unit"], figure["median"], figure["lowest"], figure["highest"]]
        rows.append([*row, *(_ratio(figure, before.get(figure["name"])) if saved else [])])
    lines = [table.text(head, rows), ""]
    for group in _ABOUT:
        lines.append(f"{group}: " + ", ".join(f"{key} {value}" for key, value in result[group].items()))
    if saved is not None:
        groups = (*_ABOUT, "recipe")
        differing = [line for group in groups for line in config.differences(saved[group], result[group])]
        lines.append(f"differs from the saved one in: {'; '.join(differing) or 'nothing'}")
    return lines


def _ratio(figure: dict[str, Any], before: dict[str, Any] | None) -> list[table.Cell]:
    if before is None:
        return ["", ""]
    ratio = f"{figure['median'] / before['median']:.3f}" if before["median"] else ""
    return [table.show(before["median"]), ratio]
