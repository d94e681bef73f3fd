"""`dsvlp bench step`: what a recipe's training step costs on this machine, alone or beside others'."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from dsvlp import config, recipe
from dsvlp.engine.bench_figures import FORMAT, joined
from dsvlp.errors import RunError
from dsvlp.launch import local
from dsvlp.reports import table

_ABOUT = ("hardware", "settings", "versions")
_path = click.Path(path_type=Path, dir_okay=False)
_count = click.IntRange(min=1)

Variant = tuple[str, ...]
"""A recipe's name and its overrides, as on the command line."""


@click.command()
@click.argument("name", metavar="RECIPE")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--nproc", type=_count, help="Processes; by default one a GPU, or one.")
@click.option("--steps", type=_count, default=10, show_default=True, help="Optimizer steps of a repeat.")
@click.option(
    "--warmup", type=_count, default=3, show_default=True, help="Steps before the first repeat, not counted."
)
@click.option("--repeats", type=_count, default=5, show_default=True, help="Measurements.")
@click.option(
    "--update/--no-update", default=True, help="Without: forward and backward alone, no optimizer, no ZeRO."
)
@click.option("--count-flops", is_flag=True, help="Also count the FLOPs that a step executes.")
@click.option(
    "--against",
    multiple=True,
    metavar="'[RECIPE] [KEY=VALUE]...'",
    help="Measure this beside it: further overrides, or another recipe under the same ones and its own. "
    "May be given several times. All take turns, each time in a process of its own.",
)
@click.option("--json", "out", type=_path, help="Write the result to this file.")
@click.option("--compare", type=_path, help="Print the ratio to this saved result.")
def command(
    name: str,
    overrides: tuple[str, ...],
    nproc: int | None,
    against: tuple[str, ...],
    out: Path | None,
    compare: Path | None,
    **lengths: Any,
) -> None:
    """Measure training steps of RECIPE: time split, pairs/s, model FLOPs, MFU, memory.

    Runs real steps on the recipe's data (the synthetic world where it has none) and saves nothing.
    Starts its own processes unless torchrun, deepspeed or srun did. MFU is the share of the GPU's
    peak; on a CPU it is the share of a matrix product's rate, measured in the same command.
    """
    launched = local.is_launched(os.environ)
    if against and (launched or compare is not None):
        raise click.UsageError(
            "--against starts its own processes and prints its own ratios, without --compare"
        )
    variants = [(name, *overrides), *(variant(name, overrides, text) for text in against)]
    resolved = [recipe.load(first, rest) for first, *rest in variants]
    saved = read(compare) if compare is not None else None
    processes = nproc or local.default_processes()
    if not launched:
        for one in resolved:
            recipe.accumulation(one, processes)
    if against:
        sys.exit(_compare(variants, processes, lengths, out))
    if not launched and processes > 1:
        given = {"--json": out, "--compare": compare}
        paths = [text for key, value in given.items() if value is not None for text in (key, str(value))]
        sys.exit(local.launch(_one(variants[0], lengths, *paths), processes))
    local.adopt_slurm(os.environ)
    local.watch_lifeline()
    code = local.guard(lambda: _bench(resolved[0], lengths, out, saved))
    if launched:
        local.leave(code)
    sys.exit(code)


def variant(name: str, overrides: tuple[str, ...], text: str) -> Variant:
    """Returns what `--against TEXT` measures beside `name overrides...`."""
    words = shlex.split(text)
    if words and "=" not in words[0]:
        name = words.pop(0)
    return (name, *overrides, *words)


def _one(measured: Variant, lengths: dict[str, Any], *further: str) -> list[str]:
    """Returns the command that measures one variant."""
    given = [text for key in ("steps", "warmup", "repeats") for text in (f"--{key}", str(lengths[key]))]
    given += [] if lengths["update"] else ["--no-update"]
    given += ["--count-flops"] if lengths["count_flops"] else []
    return local.own_command(["bench", "step", *measured, *given, *further])


def _compare(variants: list[Variant], processes: int, lengths: dict[str, Any], out: Path | None) -> int:
    """Lets the variants take turns, once a repeat, and shows them side by side."""
    results: list[list[dict[str, Any]]] = [[] for _ in variants]
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)  # not found missing after an hour
    with tempfile.TemporaryDirectory(prefix="dsvlp-bench-") as folder:
        path = Path(folder) / "one.json"
        for turn in range(lengths["repeats"]):
            for number, measured in enumerate(variants):
                click.echo(f"\nturn {turn + 1} of {lengths['repeats']}: {' '.join(measured)}")
                command_ = _one(measured, {**lengths, "repeats": 1}, "--json", str(path))
                code = local.launch(command_, processes)
                if code:
                    return code
                results[number].append(read(path))
    whole = {" ".join(measured): joined(some) for measured, some in zip(variants, results, strict=True)}
    click.echo("")
    for line in side_by_side(whole):
        click.echo(line)
    if out is not None:
        out.write_text(json.dumps({"format": FORMAT, "variants": whole}, indent=1) + "\n", encoding="utf-8")
        click.echo(f"written to {out}")
    return 0


def side_by_side(results: dict[str, dict[str, Any]]) -> list[str]:
    """Returns the lines to print of several variants: medians with their range, ratios to the first."""
    letters = {name: chr(ord("A") + number) for number, name in enumerate(results)}
    found = [{figure["name"]: figure for figure in result["figures"]} for result in results.values()]
    names = list(dict.fromkeys(name for figures in found for name in figures))
    head = ["", "unit"]
    for letter in letters.values():
        head += [letter, "lowest to highest", *([f"{letter} / A"] if letter != "A" else [])]
    rows = []
    for name in names:
        row: list[table.Cell] = [name, next(f[name] for f in found if name in f)["unit"]]
        for number, figures in enumerate(found):
            row += _median_and_range(figures.get(name))
            row += [_quotient(figures.get(name), found[0].get(name))] if number else []
        rows.append(row)
    lines = [f"{letter}: {name}" for name, letter in letters.items()]
    first = next(iter(results.values()))
    about = [f"{group}: {_listed(first[group])}" for group in _ABOUT]
    return [*lines, "", table.text(head, rows), "", *about]


def _median_and_range(figure: dict[str, Any] | None) -> list[table.Cell]:
    if figure is None:
        return ["", ""]
    return [
        table.show(figure["median"]),
        f"{table.show(figure['lowest'])} to {table.show(figure['highest'])}",
    ]


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _bench(
    resolved: recipe.Recipe, lengths: dict[str, Any], out: Path | None, saved: dict[str, Any] | None
) -> int:
    from dsvlp import dist, log  # what follows imports torch: only in a process that measures
    from dsvlp.engine.bench_step import Lengths, bench
    from dsvlp.engine.run_folder import write_json

    log.setup(int(os.environ.get("RANK", "0")))
    result = bench(resolved, Lengths(**lengths))
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
        problem = f"its format is {saved['format']}, its keys are {', '.join(sorted(saved))}"
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
        lines.append(f"{group}: {_listed(result[group])}")
    if saved is not None:
        groups = (*_ABOUT, "recipe")
        differing = [line for group in groups for line in config.differences(saved[group], result[group])]
        lines.append(f"differs from the saved one in: {'; '.join(differing) or 'nothing'}")
    return lines


def _ratio(figure: dict[str, Any], before: dict[str, Any] | None) -> list[table.Cell]:
    return ["", ""] if before is None else [table.show(before["median"]), _quotient(figure, before)]


def _quotient(figure: dict[str, Any] | None, before: dict[str, Any] | None) -> str:
    if figure is None or before is None or not before["median"]:
        return ""
    return f"{figure['median'] / before['median']:.3f}"
