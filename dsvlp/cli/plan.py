"""`dsvlp plan`: what a run will take and cost, before anything is submitted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from dsvlp import recipe
from dsvlp.accounting import assumptions, hardware, plan
from dsvlp.accounting.layout import Layout
from dsvlp.data import manifest
from dsvlp.engine import dsconfig
from dsvlp.errors import RunError
from dsvlp.reports import plan as report

LAYOUTS = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")

_path = click.Path(path_type=Path, dir_okay=False)
_positive = click.FloatRange(min=0, min_open=True)


@click.command()
@click.argument("name", metavar="RECIPE")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--gpus", type=click.IntRange(min=1), required=True, help="On each node.")
@click.option("--gpu", required=True, help="Kind of card: h200, h100, a100, v100 and others.")
@click.option("--time-limit", type=_positive, metavar="HOURS", help="Of one allocation.")
@click.option("--mfu", type=click.FloatRange(0, 1, min_open=True), help="Share of the peak.  [default: 0.3]")
@click.option("--measured", type=_path, help="Take the MFU from this result of `dsvlp bench step --json`.")
@click.option(
    "--network", type=_positive, default=400.0, show_default=True, help="Of a node to the others, Gbit/s."
)
@click.option(
    "--interruption",
    type=_positive,
    default=50_000.0,
    show_default=True,
    help="GPU-hours between two interruptions: Llama 3 had one every 50,000, OPT every 12,000.",
)
@click.option("--json", "out", type=_path, help="Write the plan to this file.")
def command(
    name: str,
    overrides: tuple[str, ...],
    nodes: int,
    gpus: int,
    gpu: str,
    time_limit: float | None,
    mfu: float | None,
    measured: Path | None,
    network: float,
    interruption: float,
    out: Path | None,
) -> None:
    """Say what RECIPE takes and costs on NODES x GPUS cards: memory, traffic, hours, saves, data.

    Arithmetic; needs no GPU and no data. Exit code 1: the run as it stands would not fit.
    """
    if mfu is not None and measured is not None:
        raise click.UsageError("--mfu states what --measured reads: give one of them")
    resolved = recipe.load(name, overrides)
    share, source = mfu or 0.3, "stated" if mfu else "assumed"
    if measured is not None:
        share, source = assumptions.measured(_read(measured), resolved, str(measured))
    assumed = assumptions.Assumptions(
        share, source, network, interruption, row_bytes=mean_row_bytes(resolved)
    )
    cluster = plan.Cluster(nodes, gpus, hardware.named(gpu), time_limit)
    layouts = [Layout.from_json(each, dsconfig.load_layout(each)) for each in LAYOUTS]
    found = plan.plan(resolved, layouts, cluster, assumed)
    for line in report.lines(found):
        click.echo(line)
    if out is not None:
        out.write_text(json.dumps(plan.to_json(found), indent=1) + "\n", encoding="utf-8")
        click.echo(f"written to {out}")
    sys.exit(0 if found.stage.fits else 1)


def mean_row_bytes(resolved: recipe.Recipe) -> float | None:
    """Returns the mean bytes of a stored image over the sources that are here, by weight; None: none is."""
    total = weights = 0.0
    for source in resolved.data.train:
        if not Path(source.path).is_dir():
            continue
        found = manifest.load(Path(source.path))
        stored = sum(record.bytes for name, record in found.files.items() if name.startswith("rows-"))
        total += source.weight * stored / max(1, found.images)
        weights += source.weight
    return total / weights if weights else None


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        results = list(result.get("variants", {"": result}).values())
        if all({"figures", "recipe", "hardware"} <= one.keys() for one in results):
            return dict(result)
        problem = f"its keys are {', '.join(sorted(result))}"
    except (OSError, ValueError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise RunError(
        f"--measured {path} holds no result of `dsvlp bench step`: {problem}",
        "a file that its --json wrote",
        "Measure again with --json, or state --mfu",
    )
