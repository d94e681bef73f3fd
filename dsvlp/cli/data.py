"""`dsvlp data`: write, check and show data sets, make features, train a vocabulary, draw a world.

The libraries of a verb are imported when it runs: FFCV and torch take seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsvlp.cli.data_features import command as features

if TYPE_CHECKING:
    from dsvlp.data.manifest import Manifest
    from dsvlp.data.readers.base import Reader

FILE = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)


@click.group()
def command() -> None:
    """Write, check, show or draw data sets."""


command.add_command(features, "features")


@command.group()
def write() -> None:
    """Write a data set X.beton from raw files. After an interruption the same command goes on."""


_WRITING = (  # called as the fields of `writer.Options`
    click.Option(
        ["--processes"],
        type=COUNT,
        default=2,
        show_default=True,
        help="Workers that check and encode images.",
    ),
    click.Option(
        ["--rows-per-shard"], type=COUNT, default=1_000_000, show_default=True, help="Images of a file."
    ),
    click.Option(
        ["--max-missing"],
        type=click.FloatRange(0, 1),
        default=0.01,
        show_default=True,
        help="Share of images that may be absent or broken.",
    ),
    click.Option(
        ["--max-pixels"], type=COUNT, default=1 << 26, show_default=True, help="Most pixels of an image."
    ),
    click.Option(["--force"], is_flag=True, help="Replace a data set of this name."),
    click.Option(
        ["--answers"], type=FILE, help="The answer table: a JSON list, or a data set that shares its own."
    ),
    click.Option(
        ["--answer-count"],
        type=COUNT,
        default=9,
        show_default=True,
        help="Without --answers: questions that must give an answer for it to be a class.",
    ),
)


def _writing(function: Callable[..., Reader]) -> Callable[..., None]:
    """Gives a reader's command the options of all writing, and writes what it reads."""

    def run(out: Path, **options: Any) -> None:
        from dsvlp.data.writer import Options
        from dsvlp.data.writer import write as write_data

        settings = {str(option.name): options.pop(str(option.name)) for option in _WRITING}
        _summary(out, write_data(function(**options), out, Options(**settings)))

    run.__doc__, run.__name__ = function.__doc__, function.__name__
    target = click.Option(["--out"], type=FILE, required=True, help="The data set to write, X.beton.")
    own = getattr(function, "__click_params__", [])  # click keeps options there, the last one first
    run.__click_params__ = [*own, *reversed((target, *_WRITING))]  # type: ignore[attr-defined]
    return run


def _summary(out: Path, manifest: Manifest) -> None:
    from dsvlp.data.answers import table_beside

    size = sum(record.bytes for record in manifest.files.values())
    click.echo(
        f"{out}: {manifest.images} images ({manifest.boxes_images} with boxes, {manifest.maps} with maps), "
        f"{manifest.samples} samples, {len(manifest.shard_rows)} shards, {size / 1e6:.1f} MB"
    )
    if (answers := table_beside(out, manifest)) is not None:
        click.echo(f"answers: {len(answers.names)} classes, {', '.join(map(repr, answers.names[:5]))} first")
        for line in manifest.outside.lines():
            click.echo(f"         {line}")
    for name, tally in (("normalised", manifest.normalised), ("skipped", manifest.skipped)):
        lines = tally.lines() or ["nothing"]
        click.echo(f"{name}: " + "\n            ".join(lines))


@write.command()
@_writing
@click.option("--captions", type=FILE, required=True, help="captions_*.json")
@click.option("--images", type=FILE, required=True, help="The folder of its pictures.")
@click.option("--instances", type=FILE, help="instances_*.json, for boxes.")
@click.option("--panoptic", type=FILE, help="panoptic_*.json; its PNGs in the folder of its name.")
@click.option("--maps", type=FILE, help="Instead: a folder of PNGs of class ids.")
@click.option("--table", help="Label table of --maps: coco_panoptic_133, coco_stuff_png, coco_stuff_json.")
def coco(**options: Any) -> Reader:
    """COCO captions, with boxes of instances and panoptic or stuff maps."""
    from dsvlp.data.readers.coco import read

    return read(**options)


@write.command()
@_writing
@click.option("--json", "file", type=FILE, required=True, help="train.json, dev.json or test.json")
@click.option("--images", type=FILE, required=True, help="The published zip, or the folder it unpacks to.")
@click.option("--permutations", default=6, show_default=True, help="Pictures of each sentence.")
def nlvr(**options: Any) -> Reader:
    """NLVR version 1: its true sentences as captions of their pictures."""
    from dsvlp.data.readers.nlvr import read

    return read(**options)


@write.command()
@_writing
@click.option("--questions", type=FILE, required=True, help="v2_OpenEnded_mscoco_*_questions.json")
@click.option("--annotations", type=FILE, help="v2_mscoco_*_annotations.json; without: no answers.")
@click.option("--images", type=FILE, required=True, help="The folder of COCO's pictures.")
def vqa(**options: Any) -> Reader:
    """VQA v2: questions with the answers of ten people."""
    from dsvlp.data.readers.questions import read_vqa

    return read_vqa(**options)


@write.command()
@_writing
@click.option(
    "--questions",
    type=FILE,
    required=True,
    help="*_balanced_questions.json, or a folder of a split in several.",
)
@click.option("--images", type=FILE, required=True, help="The folder of its pictures.")
def gqa(**options: Any) -> Reader:
    """GQA: questions with one answer each."""
    from dsvlp.data.readers.questions import read_gqa

    return read_gqa(**options)


@write.command()
@_writing
@click.option("--questions", type=FILE, required=True, help="question_answers.json")
@click.option("--images", type=FILE, required=True, help="The folder that holds VG_100K and VG_100K_2.")
def vgqa(**options: Any) -> Reader:
    """Visual Genome's questions with one answer each."""
    from dsvlp.data.readers.questions import read_genome

    return read_genome(**options)


@write.command("csv")
@_writing
@click.argument("file", type=FILE)
@click.option("--images", type=FILE, help="The folder that the image column is relative to.")
@click.option("--image-column", default="image", show_default=True)
@click.option("--caption-column", default="caption", show_default=True)
def csv_(**options: Any) -> Reader:
    """A CSV or TSV file with a header: a picture and a caption a line."""
    from dsvlp.data.readers.pairs import read_csv

    return read_csv(**options)


@write.command()
@_writing
@click.argument("folder", type=FILE)
def folder(**options: Any) -> Reader:
    """A folder of pictures, each with a .txt of its captions, one a line."""
    from dsvlp.data.readers.pairs import read_folder

    return read_folder(**options)


@write.command()
@_writing
@click.argument("files", type=FILE, nargs=-1, required=True)
def webdataset(**options: Any) -> Reader:
    """WebDataset tar files, not compressed."""
    from dsvlp.data.readers.webdataset import read

    return read(**options)


@write.command()
@_writing
@click.argument("folder", type=FILE)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    default=("caption",),
    show_default=True,
    help="caption, question, statement; may be repeated.",
)
def world(**options: Any) -> Reader:
    """A synthetic world that `dsvlp data synth` drew."""
    from dsvlp.data.synthetic import read_world

    return read_world(**options)


@command.command()
@click.option("--out", type=FILE, required=True, help="The folder for the raw pictures and annotations.")
@click.option("--images", default=2000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--image-size", default=96, show_default=True, help="Pixels of both sides.")
@click.option("--max-shapes", default=2, show_default=True, help="Most shapes of a picture, 1 to 4.")
@click.option("--split", type=click.Choice(["train", "heldout"]), default="train", show_default=True)
def synth(out: Path, images: int, seed: int, image_size: int, max_shapes: int, split: Any) -> None:
    """Draw a synthetic world. `dsvlp data write world` makes a data set of it."""
    from tqdm import tqdm

    from dsvlp.data.synthetic import World, write_world

    with tqdm(total=images, unit=" images") as bar:
        world = World(seed, split, image_size, max_shapes)
        write_world(out, world, images, lambda done: bar.update(done - bar.n))
    click.echo(f"{out}: next: dsvlp data write world {out} --out {out}.beton")


@command.command()
@click.argument("recipe", default="tiny_svl")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def demo(recipe: str, overrides: tuple[str, ...]) -> None:
    """Make the synthetic data that RECIPE trains on where it names no files, and print where they lie."""
    from dsvlp.data.opened import cache_folder, synthetic_places
    from dsvlp.recipe import load

    for path, regions in synthetic_places(load(recipe, overrides), cache_folder()):
        click.echo(" ".join(str(place) for place in (path, regions) if place is not None))


@command.command()
@click.argument("path", type=FILE)
@click.option("--against", type=FILE, help="Also find the images shared with this data set.")
@click.option("--features", "regions", type=FILE, help="Also every byte of its region features.")
@click.pass_context
def check(ctx: click.Context, path: Path, against: Path | None, regions: Path | None) -> None:
    """Verify every byte, picture, box and map of PATH; exit code 1 where images are shared."""
    from dsvlp.data.check import check as check_data
    from dsvlp.data.check import shared_images
    from dsvlp.data.dataset import Dataset
    from dsvlp.data.features.stored import Features

    if regions is not None:
        found = Features.open(regions, Dataset.open(path, "quick"), "full").manifest
        kind = f"{found.images} x {found.objects} x {found.width} {found.dtype}"
        click.echo(f"features         {kind}, {'; '.join(found.adjusted.lines()) or 'as they came'}")
    for key, value in vars(check_data(path)).items():
        if isinstance(value, tuple):
            click.echo(f"{key:16} {value[0]:g} to {value[2]:g}, mean {value[1]:.1f}")
        elif isinstance(value, dict):
            click.echo(
                f"{key:16} " + (", ".join(f"{name} {count}" for name, count in value.items()) or "none")
            )
        else:
            click.echo(f"{key:16} {value}")
    if against is None:
        return
    shared = shared_images(Dataset.open(path, "quick"), Dataset.open(against))
    click.echo(f"shared by id     {len(shared.by_id)} {', '.join(shared.by_id[:10])}")
    pairs = ", ".join(f"{mine} = {other}" for mine, other in shared.by_hash[:10])
    click.echo(f"shared by hash   {len(shared.by_hash)} {pairs}")
    if shared.by_id or shared.by_hash:
        ctx.exit(1)


@command.command()
@click.argument("path", type=FILE)
@click.option("--out", type=FILE, required=True, help="A .png or .html file.")
@click.option("--count", type=COUNT, default=16, show_default=True, help="Images to show.")
@click.option("--first", default=0, show_default=True, help="The first row.")
@click.option("--features", "regions", type=FILE, help="PATH's features: their best objects are drawn too.")
def show(path: Path, out: Path, count: int, first: int, regions: Path | None) -> None:
    """Draw a contact sheet of PATH: pictures, captions, boxes, maps, objects of region features."""
    from dsvlp.data.dataset import Dataset
    from dsvlp.data.features.stored import Features
    from dsvlp.data.show import show as draw

    dataset = Dataset.open(path, "quick")
    draw(dataset, out, count, first, Features.open(regions, dataset) if regions is not None else None)
    click.echo(str(out))


@command.command()
@click.argument("path", type=FILE)
@click.option("--size", type=COUNT, default=30522, show_default=True, help="Most tokens.")
@click.option("--out", type=FILE, help="The tokenizer's folder; by default PATH/tokenizer.")
@click.option("--force", is_flag=True, help="Replace a tokenizer that is there.")
def vocab(path: Path, size: int, out: Path | None, force: bool) -> None:
    """Train a WordPiece vocabulary on the texts of PATH."""
    from dsvlp.data.dataset import Dataset
    from dsvlp.data.text import train_wordpiece
    from dsvlp.errors import DataError

    place = path / "tokenizer" if out is None else out
    if place.exists() and not force:
        raise DataError(f"{place} exists", "a new folder", "Choose another --out, or replace it with --force")
    tokenizer = train_wordpiece(Dataset.open(path, "quick").all_texts, size)
    tokenizer.save(place)
    click.echo(f"{place}: {tokenizer.vocabulary} tokens, fingerprint {tokenizer.fingerprint}")
