"""`dsvlp export`: a run's weights for others, without optimizer state and without DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The new folder or file.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["dsvlp", "fiber"]),
    default="dsvlp",
    show_default=True,
    help="fiber: one .ckpt or .safetensors file under the official code's names.",
)
def command(folder: Path, out: Path, form: str) -> None:
    """Write the newest checkpoint's weights, recipe and tokenizer as safetensors and JSON.

    `dsvlp.load(OUT)` and `dsvlp predict OUT` read them.
    """
    from dsvlp.predict import export, imported  # imports torch: only when called
    from dsvlp.predict.model import open_trained

    trained, tokenizer = open_trained(folder)
    if form == "fiber":
        count = imported.write(trained.system, trained.recipe, out)
        click.echo(f"{out}: {count:,} tensors of step {trained.step:,} under the official names")
        return
    numbers = export.write(trained, tokenizer, out)
    click.echo(f"{out}: {numbers:,} numbers of step {trained.step:,}")
