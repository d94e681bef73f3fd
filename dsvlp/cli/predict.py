"""`dsvlp predict`: does this text belong to this picture, and where does each word look?"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--image", type=click.Path(path_type=Path), help="An image file.")
@click.option("--data", type=click.Path(path_type=Path), help="Instead: a data set, .beton, and")
@click.option("--row", type=click.IntRange(min=0), default=0, show_default=True, help="the row of its image.")
@click.option("--features", type=click.Path(path_type=Path), help="The data set's, for a system of objects.")
@click.option("--text", required=True, multiple=True, help="A caption; may be given several times.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the overlays [default: attention-IMAGE]."
)
def command(
    folder: Path,
    image: Path | None,
    data: Path | None,
    row: int,
    features: Path | None,
    text: tuple[str, ...],
    out: Path | None,
) -> None:
    """Print how a picture and each text match, and draw where each word looks.

    First ITM's probability that they belong together, then ITC's cosine; the one that the run was trained
    without is left out. RUN is a run's folder or an export. One PNG a word is written for an image file
    where the image tokens are a grid.
    """
    from dsvlp.data.dataset import Dataset  # imports torch: only when called
    from dsvlp.predict import load, overlay

    if (image is None) == (data is None):
        raise click.UsageError("give one of --image FILE and --data X.beton")
    model = load(folder)
    if data is not None:
        images = model.encode_rows(Dataset.open(data, "quick", features), [row] * len(text))
    elif image is not None:
        images = model.encode_image([image] * len(text))
    texts = model.encode_text(text)
    columns = []
    for name, measure in (("itm", model.score), ("itc", model.similarity)):
        if getattr(model.trained.recipe.objectives, name) is not None:
            columns.append([f"{name} {float(value):.4f}" for value in measure(images, texts)])
    if not columns:
        model.score(images, texts)  # says what is missing
    for number, (caption, *values) in enumerate(zip(text, *columns, strict=True)):
        click.echo("  ".join([*values, caption]))
        if image is not None and model.shows_words:
            place = out or Path(f"attention-{image.stem}")
            target = place / f"text-{number}" if len(text) > 1 else place
            for path in overlay.write(image, model.attention(image, caption), target):
                click.echo(f"        {path}")
