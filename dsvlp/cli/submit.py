"""`dsvlp submit`: one run as a Slurm job, checked on the login node."""

from __future__ import annotations

from pathlib import Path

import click

from dsvlp import slurm
from dsvlp.launch import preflight, sbatch
from dsvlp.launch.submit import MAX_RESTARTS, Resources, prepare, submit


@click.command()
@click.argument("name", metavar="RECIPE")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--nodes", type=int, default=1, show_default=True)
@click.option("--gpus", type=int, required=True, help="On each node, one process each; 0: one on the CPU.")
@click.option("--hours", type=float, required=True, help="Time limit of one start; the run goes on after it.")
@click.option("--partition", help="By default the cluster's.")
@click.option("--account", help="Whom the hours are billed to; by default the user's.")
@click.option("--qos")
@click.option("--container", help="KIND:IMAGE of apptainer, enroot or pyxis.")
@click.option(
    "--sbatch", "options", multiple=True, metavar="NAME=VALUE", help="Another option of sbatch; repeatable."
)
@click.option("--run", type=click.Path(path_type=Path, file_okay=False), help="The run's folder.")
@click.option("--max-restarts", type=click.IntRange(min=0), default=MAX_RESTARTS, show_default=True)
@click.option("--override", is_flag=True, help="Go on although the folder's recipe differs in what binds.")
@click.option("--dry-run", is_flag=True, help="Check, print the batch script, write and submit nothing.")
def command(
    name: str,
    overrides: tuple[str, ...],
    nodes: int,
    gpus: int,
    hours: float,
    partition: str | None,
    account: str | None,
    qos: str | None,
    container: str | None,
    options: tuple[str, ...],
    run: Path | None,
    max_restarts: int,
    override: bool,
    dry_run: bool,
) -> None:
    """Train RECIPE (a shipped name or a .toml file) as a Slurm job.

    Code and resolved recipe are copied into the run's folder: what is edited while the job waits changes
    nothing. Killed, preempted or out of time, the run is started again and goes on from its newest
    checkpoint.
    """
    more = dict(_option(text) for text in options)
    resources = Resources(nodes, gpus, hours, partition, account, qos, container, more)
    if dry_run:
        if slurm.is_available():
            preflight.check_cluster(resources)
        else:
            click.echo("no Slurm here: partition, account and size are not checked", err=True)
        _, job = prepare(name, overrides, resources, run=run, max_restarts=max_restarts, override=override)
        click.echo(sbatch.text(job), nl=False)
        return
    submitted = submit(name, overrides, resources, run=run, max_restarts=max_restarts, override=override)
    click.echo(f"job {submitted.job}, run folder {submitted.run}\nlog {submitted.log}")


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.lstrip("-").partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--sbatch")
    return name, value
