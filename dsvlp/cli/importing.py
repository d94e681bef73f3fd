"""`dsvlp import`: published weights as an export of ours (a module may not be called `import`)."""

from __future__ import annotations

import logging
from pathlib import Path

import click


@click.command()
@click.argument("system", type=click.Choice(["fiber"]))
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The new folder.")
@click.option("--tokenizer", default="roberta-base", show_default=True, help="Folder or hub name.")
@click.option("--image-size", type=int, help="Pixels; resizes the window tables [default: the recipe's].")
@click.option("--recipe", default="pretrain_fiber", show_default=True, help="Sizes, heads and fusion plan.")
def command(
    system: str,
    checkpoint: Path,
    overrides: tuple[str, ...],
    out: Path,
    tokenizer: str,
    image_size: int | None,
    recipe: str,
) -> None:
    """Write the official coarse FIBER checkpoint (.ckpt or .safetensors) as `dsvlp export` does.

    `dsvlp.load(OUT)` and `dsvlp predict OUT` read it. No code in the file is run.
    """
    from dsvlp.data.text import Tokenizer  # imports torch: only when called
    from dsvlp.predict import export, imported

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    words = Tokenizer.load(tokenizer)
    keys = [*overrides, *([] if image_size is None else [f"model.image_size={image_size}"])]
    count = export.write(imported.read(checkpoint, recipe, keys, words), words, out)
    click.echo(f"{out}: {count:,} numbers of {checkpoint}")
