"""`dsvlp export`: a run's weights for others, without optimizer state and without DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The new folder.")
def command(folder: Path, out: Path) -> None:
    """Write the newest checkpoint's weights, recipe and tokenizer as safetensors and JSON.

    `dsvlp.load(OUT)` and `dsvlp predict OUT` read them.
    """
    from dsvlp.predict import export  # imports torch: only when called
    from dsvlp.predict.model import open_trained

    trained, tokenizer = open_trained(folder)
    count = export.write(trained, tokenizer, out)
    click.echo(f"{out}: {count:,} numbers of step {trained.step:,}")
