"""`dsvlp bench scaling`: what a training step gains by more processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from dsvlp import config, recipe
from dsvlp.cli import bench_step, bench_turns
from dsvlp.cli.bench_turns import Variant
from dsvlp.engine import bench_scaling as bench
from dsvlp.engine.bench_scaling import Place
from dsvlp.launch import local


@click.command()
@bench_turns.recipe_arguments
@click.option("--nproc", type=bench_turns.count, help="Most processes; by default one a GPU, or one a core.")
@bench_turns.step_options(steps=5, warmup=2, repeats=3)
@bench_turns.result_options
def command(
    name: str,
    overrides: tuple[str, ...],
    nproc: int | None,
    out: Path | None,
    compare: Path | None,
    **lengths: int,
) -> None:
    """Measure training steps of RECIPE on 1, 2, 4 ... processes: efficiency and share of communication.

    Once with the recipe's global batch on all, once with its global batch on each. On CPUs every process
    has the same number of threads, so that one alone is no faster than its share.
    """
    gpus = local.default_processes()
    cores = len(os.sched_getaffinity(0))
    most = nproc or (gpus if gpus > 1 else cores)
    resolved = recipe.load(name, overrides)
    variants = {
        (mode, count): (name, *overrides, *bench.overrides(resolved, mode, count))
        for mode in bench.MODES
        for count in bench.counts(most)
    }
    for (_, count), (first, *rest) in variants.items():
        recipe.accumulation(recipe.load(first, rest), count)
    saved = bench_turns.begin("scaling", out, compare)
    environment = {"OMP_NUM_THREADS": str(max(1, cores // most)), **os.environ}
    results = _turns(variants, lengths, environment)
    if isinstance(results, int):
        sys.exit(results)
    bench_turns.finish(_joined(resolved, results, {**lengths, "most_processes": most}), out, saved)


def _turns(
    variants: dict[Place, Variant], lengths: dict[str, int], environment: dict[str, str]
) -> dict[Place, dict[str, Any]] | int:
    """Lets all places take turns; one process alone, the same in both modes, is measured once."""
    single: dict[str, Any] = {**lengths, "repeats": 1, "update": True, "count_flops": False, "parts": True}
    titles = {place: f"{' '.join(each)}, {place[1]} processes" for place, each in variants.items()}
    commands = {
        titles[place]: (bench_step.command_of(each, single), place[1]) for place, each in variants.items()
    }
    results = bench_turns.take_turns("step", commands, lengths["repeats"], environment)
    return results if isinstance(results, int) else {place: results[titles[place]] for place in variants}


def _joined(
    resolved: recipe.Recipe, results: dict[Place, dict[str, Any]], lengths: dict[str, int]
) -> dict[str, Any]:
    """Returns the one result: the rows of all places, and what the first says of machine and versions."""
    first = next(iter(results.values()))
    settings = {
        "recipe": config.digest(resolved),
        **lengths,
        "threads_a_process": first["settings"]["threads"],
        "zero": resolved.engine.zero,
        "precision": resolved.engine.precision,
    }
    rows = [figure.to_json() for figure in bench.figures(results)]
    changes = {"bench": "scaling", "figures": rows, "settings": settings, "recipe": config.dump(resolved)}
    return {**first, **changes}
