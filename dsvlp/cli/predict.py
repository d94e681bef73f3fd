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
    """Print the match probability of a picture and each text, and draw where each word looks.

    RUN is a run's folder or an export. One PNG a word is written where the image tokens are a grid.
    """
    from dsvlp.predict import load, overlay  # imports torch: only when called

    model = load(folder)
    out = out or Path(f"attention-{image.stem}")
    images, texts = model.encode_image([image] * len(text)), model.encode_text(text)
    for number, (caption, probability) in enumerate(zip(text, model.score(images, texts), strict=True)):
        click.echo(f"{float(probability):.4f}  {caption}")
        if not model.trained.recipe.model.visual_queries:
            target = out / f"text-{number}" if len(text) > 1 else out
            for path in overlay.write(image, model.attention(image, caption), target):
                click.echo(f"        {path}")
