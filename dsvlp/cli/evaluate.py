"""`dsvlp evaluate`: the scores of a run, printed and written to its folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from dsvlp.launch import local
from dsvlp.reports import table


@click.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--data", type=click.Path(path_type=Path), help="Held-out .beton; by default the recipe's.")
@click.option("--checkpoint", type=click.Choice(["last", "best"]), default="last", show_default=True)
@click.option("--pairs", type=click.IntRange(min=0), default=0, help="At most about so many pairs; 0: all.")
@click.option("--retrieval/--no-retrieval", default=True, help="Score all image-text pairs.")
@click.option(
    "--captions",
    type=click.Choice(["first", "all"]),
    default="first",
    show_default=True,
    help="Retrieval with each image's first caption, or with all as well.",
)
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
    from dsvlp.engine.run_folder import write_json
    from dsvlp.engine.scoring import Scorer, Settings
    from dsvlp.engine.watchdog import Watchdog

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
    click.echo(table.text(head, list(_losses(scores))))
    shares = list(_shares(scores))
    if shares:
        click.echo(table.text(("score", "value", "95% interval", "of"), shares))


def _losses(scores: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    values = scores["losses"]
    for key, loss in values.items():
        name = key.removeprefix("loss/")
        if not key.startswith("loss/") or name == "total":
            continue
        columns = (loss, values.get(f"constant/{name}"))
        accuracies = (values.get(f"metrics/{name}/accuracy"), values.get(f"constant/{name}/accuracy"))
        yield (
            name,
            *("" if value is None else f"{value:.4f}" for value in columns),
            *("" if value is None else f"{value:.1%}" for value in accuracies),
            f"{values[f'count/{name}']:.0f}",
        )


def _shares(scores: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    groups = dict(scores.get("retrieval", {}))
    if scores.get("probes"):
        groups["probes"] = scores["probes"]
    for group, shares in groups.items():
        if isinstance(shares, dict):
            for name, share in shares.items():
                low, high = share["interval_95"]
                yield (
                    f"{group} {name}",
                    f"{share['value']:.1%}",
                    f"{low:.1%} to {high:.1%}",
                    str(share["total"]),
                )
