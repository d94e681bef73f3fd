"""`dsvlp predict`: does this text belong to this picture, and where does each word look?"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--image", required=True, type=click.Path(path_type=Path), help="An image file.")
@click.option("--text", required=True, multiple=True, help="A caption; may be given several times.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the overlays [default: attention-IMAGE]."
)
def command(folder: Path, image: Path, text: tuple[str, ...], out: Path | None) -> None:
    """Print how a picture and each text match, and draw where each word looks.

    First ITM's probability that they belong together, then ITC's cosine; the one that the run was trained
    without is left out. RUN is a run's folder or an export. One PNG a word is written where the image
    tokens are a grid.
    """
    from dsvlp.predict import load, overlay  # imports torch: only when called

    model = load(folder)
    out = out or Path(f"attention-{image.stem}")
    images, texts = model.encode_image([image] * len(text)), model.encode_text(text)
    columns = []
    for name, measure in (("itm", model.score), ("itc", model.similarity)):
        if getattr(model.trained.recipe.objectives, name) is not None:
            columns.append([f"{name} {float(value):.4f}" for value in measure(images, texts)])
    if not columns:
        model.score(images, texts)  # says what is missing
    for number, (caption, *values) in enumerate(zip(text, *columns, strict=True)):
        click.echo("  ".join([*values, caption]))
        if not model.trained.recipe.model.visual_queries:
            target = out / f"text-{number}" if len(text) > 1 else out
            for path in overlay.write(image, model.attention(image, caption), target):
                click.echo(f"        {path}")
