"""`dsvlp bench step`: what a recipe's training step costs on this machine, alone or beside others'."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from dsvlp import recipe
from dsvlp.cli import bench_turns
from dsvlp.cli.bench_turns import Variant
from dsvlp.launch import local


@click.command()
@bench_turns.recipe_arguments
@click.option("--nproc", type=bench_turns.count, help="Processes; by default one a GPU, or one.")
@bench_turns.step_options(steps=10, warmup=3, repeats=5)
@click.option(
    "--update/--no-update", default=True, help="Without: forward and backward alone, no optimizer, no ZeRO."
)
@click.option("--count-flops", is_flag=True, help="Also count the FLOPs that a step executes.")
@click.option("--parts", is_flag=True, help="Also tell where the time goes, part by part beside its floor.")
@bench_turns.against_option
@bench_turns.result_options
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
    variants = [(name, *overrides), *(bench_turns.variant(name, overrides, text) for text in against)]
    resolved = [recipe.load(first, rest) for first, *rest in variants]
    saved = bench_turns.begin("step", out, compare)
    processes = nproc or local.default_processes()
    if not launched:
        for one in resolved:
            recipe.accumulation(one, processes)
    if against:
        sys.exit(_compare(variants, processes, lengths, out))
    if not launched and processes > 1:
        given = {"--json": out, "--compare": compare}
        paths = [text for key, value in given.items() if value is not None for text in (key, str(value))]
        sys.exit(local.launch(command_of(variants[0], lengths, *paths), processes))
    local.adopt_slurm(os.environ)
    local.watch_lifeline()
    code = local.guard(lambda: _bench(resolved[0], lengths, out, saved))
    if launched:
        local.leave(code)
    sys.exit(code)


def command_of(measured: Variant, lengths: dict[str, Any], *further: str) -> list[str]:
    """Returns the command that measures one variant."""
    given = [text for key in ("steps", "warmup", "repeats") for text in (f"--{key}", str(lengths[key]))]
    given += [] if lengths["update"] else ["--no-update"]
    given += [f"--{key.replace('_', '-')}" for key in ("count_flops", "parts") if lengths[key]]
    return local.own_command(["bench", "step", *measured, *given, *further])


def _compare(variants: list[Variant], processes: int, lengths: dict[str, Any], out: Path | None) -> int:
    """Lets the variants take turns, once a repeat, and shows them side by side."""
    single = {**lengths, "repeats": 1}
    commands = {" ".join(each): (command_of(each, single), processes) for each in variants}
    results = bench_turns.take_turns("step", commands, lengths["repeats"])
    if isinstance(results, int):
        return results
    bench_turns.finish_variants("step", results, out)
    return 0


def _bench(
    resolved: recipe.Recipe, lengths: dict[str, Any], out: Path | None, saved: dict[str, Any] | None
) -> int:
    from dsvlp import dist, log  # what follows imports torch: only in a process that measures
    from dsvlp.engine.bench_step import Lengths, bench

    log.setup(int(os.environ.get("RANK", "0")))
    result = bench(resolved, Lengths(**lengths))
    if dist.rank() == 0:
        bench_turns.finish(result, out, saved)
    return 0
