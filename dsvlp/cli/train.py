"""`dsvlp train`: one run, on one process or several."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from dsvlp import config, recipe
from dsvlp.launch import local


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("name", metavar="RECIPE")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--run", type=click.Path(path_type=Path, file_okay=False), help="The run's folder; a run there goes on."
)
@click.option("--nproc", type=click.IntRange(min=1), help="Processes; by default one a GPU, or one.")
@click.option("--override", is_flag=True, help="Go on although the folder's recipe differs in what binds.")
def command(
    name: str, overrides: tuple[str, ...], run: Path | None, nproc: int | None, override: bool
) -> None:
    """Train RECIPE (a shipped name or a .toml file), or go on with the run in --run.

    Starts its own processes unless torchrun, deepspeed or srun did. Exit codes: 0 trained to the end,
    75 stopped on request and saved (start the same command again to go on), 124 hung.
    """
    resolved = recipe.load(name, overrides)
    launched = local.is_launched(os.environ)
    processes = nproc or local.default_processes()
    if not launched:
        recipe.accumulation(resolved, processes)
    folder = (
        run or Path("runs") / f"{Path(name).stem}-{time.strftime('%Y%m%d-%H%M%S')}-{config.digest(resolved)}"
    )
    if not launched and processes > 1:
        click.echo(f"run folder {folder}, {processes} processes")
        arguments = ["train", name, *overrides, "--run", str(folder), *(["--override"] if override else [])]
        sys.exit(local.launch(local.own_command(arguments), processes))
    if not launched:
        click.echo(f"run folder {folder}")
    local.adopt_slurm(os.environ)
    local.watch_lifeline()
    code = local.guard(lambda: _train(resolved, folder, override))
    if launched:
        local.leave(code)
    sys.exit(code)


def _train(resolved: recipe.Recipe, folder: Path, override: bool) -> int:
    from dsvlp.engine.stop import STOPPED
    from dsvlp.engine.train import train  # imports torch: only in a process that trains

    return STOPPED if train(resolved, folder, override=override).stopped else 0
