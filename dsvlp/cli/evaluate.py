"""`dsvlp evaluate`: the scores of a run, printed and written to its folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from dsvlp.launch import local
from dsvlp.reports import html, table


@click.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--data", type=click.Path(path_type=Path), help="Held-out .beton; by default the recipe's.")
@click.option("--features", type=click.Path(path_type=Path), help="The region features of --data.")
@click.option("--checkpoint", type=click.Choice(["last", "best"]), default="last", show_default=True)
@click.option("--pairs", type=click.IntRange(min=0), default=0, help="At most about so many pairs; 0: all.")
@click.option("--retrieval/--no-retrieval", default=True, help="Rank texts for images and images for texts.")
@click.option(
    "--captions",
    type=click.Choice(["first", "all"]),
    default="first",
    show_default=True,
    help="Retrieval with each image's first caption, or with all as well.",
)
@click.option(
    "--rerank",
    type=click.IntRange(min=0),
    help="A query's first candidates by ITC that ITM orders anew; 0: none  [default: 16 with ITC and ITM]",
)
@click.option("--all-pairs", is_flag=True, help="Score every pair by ITM, as a system without ITC must.")
@click.option("--zero-gates", is_flag=True, help="Measure also with all gates of the fusion at 0.")
@click.option(
    "--chunk-pairs", type=click.IntRange(min=1), default=256, show_default=True, help="Fused at once."
)
@click.option("--nproc", type=click.IntRange(min=1), help="Processes; by default one a GPU, or one.")
def command(run: Path, checkpoint: str, nproc: int | None, **settings: Any) -> None:
    """Score RUN on held-out data: losses beside the best constant predictor, accuracies, retrieval.

    Writes RUN/scores.json. Starts its own processes unless torchrun, deepspeed or srun did.
    """
    launched = local.is_launched(os.environ)
    processes = nproc or local.default_processes()
    if not launched and processes > 1:
        sys.exit(local.launch(local.own_command(sys.argv[1:]), processes))
    local.adopt_slurm(os.environ)
    local.watch_lifeline()
    code = local.guard(lambda: _evaluate(run, checkpoint, settings))
    if launched:
        local.leave(code)
    sys.exit(code)


def _evaluate(run: Path, checkpoint: str, settings: dict[str, Any]) -> int:
    from dsvlp import dist, log  # what follows imports torch: only in a process that evaluates
    from dsvlp.data.text import Tokenizer
    from dsvlp.engine import zero
    from dsvlp.engine.inference import load_trained
    from dsvlp.engine.scoring import Scorer, Settings
    from dsvlp.engine.watchdog import Watchdog
    from dsvlp.files import write_json

    zero.join()
    log.setup(dist.rank())
    trained = load_trained(run, "best" if checkpoint == "best" else "last")
    with Watchdog(trained.recipe.engine.watchdog_seconds) as watchdog:
        tokenizer = Tokenizer.load(run / "tokenizer")
        scores = Scorer(trained, tokenizer, Settings(**settings), watchdog.progress).run()
    if dist.rank() == 0:
        write_json(run / "scores.json", scores)
        _print(scores)
        click.echo(f"written to {run / 'scores.json'}")
    return 0


def _print(scores: dict[str, Any]) -> None:
    click.echo(f"{scores['data']}, {scores['images']} images; {scores['checkpoint']}")
    for name, reason in scores["left_out"].items():
        click.echo(f"{name} is left out: {reason}")
    head = ("objective", "loss", "constant's loss", "accuracy", "constant's", "targets")
    names = {"itm": html.objective_name("itm", scores["itm_negatives"])}
    click.echo(table.text(head, list(_losses(scores["losses"], names))))
    if "zero_gates" in scores:
        click.echo("\nwith all gates of the fusion at 0:")
        click.echo(table.text(head, list(_losses(scores["zero_gates"]["losses"], names))))
    shares = [_row(name, share) for name, share in _shares(scores)]
    if shares:
        click.echo("\n" + table.text(("score", "value", "95% interval", "chance", "of"), shares))
    if "gates" in scores:
        click.echo(f"\ngates: {', '.join(f'{name} {value:.3f}' for name, value in scores['gates'].items())}")


def _losses(values: dict[str, float], names: dict[str, str]) -> Iterator[tuple[str, ...]]:
    for key, loss in values.items():
        name = key.removeprefix("loss/")
        if not key.startswith("loss/") or name == "total":
            continue
        columns = (loss, values.get(f"constant/{name}"))
        accuracies = (values.get(f"metrics/{name}/accuracy"), values.get(f"constant/{name}/accuracy"))
        yield (
            names.get(name, name),
            *("" if value is None else f"{value:.4f}" for value in columns),
            *("" if value is None else f"{value:.1%}" for value in accuracies),
            f"{values[f'count/{name}']:.0f}",
        )


def _shares(value: dict[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every share among nested scores, with the names that lead to it."""
    for key, inner in value.items():
        if isinstance(inner, dict) and "interval_95" in inner:
            yield f"{name} {key}".strip(), inner
        elif isinstance(inner, dict):
            yield from _shares(inner, f"{name} {key}".strip())


def _row(name: str, share: dict[str, Any]) -> tuple[str, ...]:
    low, high = share["interval_95"]
    chance = f"{share['chance']:.1%}" if "chance" in share else ""
    return name, f"{share['value']:.1%}", f"{low:.1%} to {high:.1%}", chance, str(share["total"])
