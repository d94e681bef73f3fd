"""`dsvlp train`: one run, on one process or several."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from dsvlp import recipe
from dsvlp.engine import exported, stop
from dsvlp.errors import RecipeError
from dsvlp.files import read_json
from dsvlp.launch import local


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("name", metavar="[RECIPE]", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--run", type=click.Path(path_type=Path, file_okay=False), help="The run's folder; a run there goes on."
)
@click.option("--nproc", type=click.IntRange(min=1), help="Processes; by default one a GPU, or one.")
@click.option("--override", is_flag=True, help="Go on although the folder's recipe differs in what binds.")
@click.option(
    "--trace",
    is_flag=True,
    help="Profile steps 10 to 15 of this attempt, for TensorBoard's plugin or Perfetto.",
)
def command(
    name: str | None, overrides: tuple[str, ...], run: Path | None, nproc: int | None, **flags: bool
) -> None:
    """Train RECIPE (a shipped name or a .toml file), or go on with the run in --run.

    Without RECIPE the run's own is taken. Starts its own processes unless torchrun, deepspeed or srun
    did. Exit codes: 0 trained to the end, 75 stopped on request and saved (start the same command again
    to go on), 124 hung.
    """
    began = time.time()
    launched = local.is_launched(os.environ)
    if launched:
        stop.hold()
    resolved = _recipe(name, overrides, run)
    processes = nproc or local.default_processes()
    if not launched:
        resolved.data.check_named()
        recipe.accumulation(resolved, processes)
    folder = run or local.new_run(name or "", resolved)
    if not launched and not any((folder / "checkpoints").glob("step-*")):
        exported.start_of(resolved)  # a run that goes on has its own weights
    if not launched and processes > 1:
        click.echo(f"run folder {folder}, {processes} processes")
        chosen = [name, *overrides] if name is not None else []
        arguments = ["train", *chosen, "--run", str(folder)]
        arguments += [f"--{flag}" for flag, given in flags.items() if given]
        sys.exit(local.launch(local.own_command(arguments), processes))
    if not launched:
        click.echo(f"run folder {folder}")
    local.adopt_slurm(os.environ)
    local.watch_lifeline()
    code = local.guard(lambda: _train(resolved, folder, began, flags))
    if launched:
        local.leave(code)
    sys.exit(code)


def _recipe(name: str | None, overrides: tuple[str, ...], run: Path | None) -> recipe.Recipe:
    if name is not None:
        return recipe.load(name, overrides)
    if run is None:
        raise RecipeError("neither a recipe nor a run is named", fix="`dsvlp recipes` lists the recipes")
    path = run / "recipe.json"
    return recipe.from_json(read_json(path, "`dsvlp train --run`"), str(path))


def _train(resolved: recipe.Recipe, folder: Path, began: float, flags: dict[str, bool]) -> int:
    from dsvlp.engine.train import train  # imports torch: only in a process that trains

    return stop.STOPPED if train(resolved, folder, began=began, **flags).stopped else 0
