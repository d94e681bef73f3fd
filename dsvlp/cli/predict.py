"""`dsvlp predict`: does this text belong to this picture, and where does each word look?"""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource


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
@click.pass_context
def command(
    ctx: click.Context,
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
    from dsvlp.recipe import reads_objects

    if (image is None) == (data is None):
        raise click.UsageError("give one of --image FILE and --data X.beton")
    for option, partner in (("row", "data"), ("features", "data"), ("out", "image")):
        other = "image" if partner == "data" else "data"
        if ctx.params[other] is not None and ctx.get_parameter_source(option) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{option} goes with --{partner}, and does nothing with --{other}")
    model = load(folder)
    system = model.trained.recipe.model.system
    if features is not None and not reads_objects(model.trained.recipe):
        raise click.UsageError(f"--features goes with a system of objects; {folder} is of {system}")
    if out is not None and not model.shows_words:
        raise click.UsageError(
            f"--out goes with a system whose words look at places; {folder} is of {system}"
        )
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
