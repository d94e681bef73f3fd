"""`dsvlp data features`: region features of a data set, made by a detector and a CNN, or read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from dsvlp.data.features.manifest import FeatureManifest
    from dsvlp.data.features.writer import Options

FILE = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)
_COUNTED, _SHOWN = 10_000, 12
_OF_MAKING = ("backbone", "weights", "shorter", "longer", "batch", "workers", "processes")
_OF_READING = ("classes", "max_missing")


@click.command()
@click.argument("path", metavar="BETON", type=FILE)
@click.option("--out", type=FILE, required=True, help="The features to write, X.features.")
@click.option("--detector", help="Boxes, classes and confidences of this detector: hub name or folder.")
@click.option(
    "--boxes", type=click.Choice(["given", "grid"]), help="Or BETON's own boxes, or the cells of a grid."
)
@click.option(
    "--from",
    "sources",
    type=(click.Choice(["tsv", "folder"]), FILE),
    multiple=True,
    help="Or everything from LXMERT's tsv (of several files: repeat it), or from a folder of npy or "
    "safetensors files.",
)
@click.option("--classes", type=FILE, help="With --from: the classes' names, one a line.")
@click.option("--backbone", default="resnet101", show_default=True, help="A CNN of timm, of stride 32.")
@click.option(
    "--weights", help="Its timm checkpoint, by name or file; 'random' draws them.  [default: its own]"
)
@click.option("--objects", type=COUNT, default=100, show_default=True, help="Objects of an image.")
@click.option("--int8", is_flag=True, help="Store features in 8 bits: half the bytes.")
@click.option("--shorter", type=COUNT, default=600, show_default=True, help="Pixels of the shorter side.")
@click.option("--longer", type=COUNT, default=1000, show_default=True, help="Most pixels of the longer one.")
@click.option("--batch", type=COUNT, default=8, show_default=True, help="Images at a time.")
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="Threads a process that decode.",
)
@click.option("--processes", type=COUNT, default=1, show_default=True, help="Processes on this machine.")
@click.option(
    "--max-missing",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="With --from: share of images that may have no regions.",
)
@click.option("--force", is_flag=True, help="Replace features of this name; not with several ranks.")
@click.pass_context
def command(
    ctx: click.Context,
    path: Path,
    out: Path,
    detector: str | None,
    boxes: Literal["given", "grid"] | None,
    sources: tuple[tuple[str, Path], ...],
    classes: Path | None,
    backbone: str,
    weights: str | None,
    objects: int,
    int8: bool,
    shorter: int,
    longer: int,
    batch: int,
    workers: int,
    processes: int,
    max_missing: float,
    force: bool,
) -> None:
    """Make the region features of BETON. After an interruption the same command goes on.

    Under srun or torchrun each rank makes its share; the last to finish joins all.
    """
    given = [
        option
        for option, value in (("--detector", detector), ("--boxes", boxes), ("--from", sources))
        if value
    ]
    if len(given) != 1:
        raise click.UsageError("give one of --detector, --boxes and --from")
    _refuse_ignored(ctx, given[0])
    from dsvlp.data.features.writer import Options

    options = Options(
        objects=objects, dtype="int8" if int8 else "float16", max_missing=max_missing, force=force
    )
    if sources:
        manifest = _read(path, out, sources, classes, options)
    else:
        from dsvlp.regions.backbone import Sizes
        from dsvlp.regions.work import Crew, Settings, make_features

        settings = Settings(boxes or "detector", detector, backbone, weights, objects, Sizes(shorter, longer))
        rank, world, local_rank = _ranks()
        crew = Crew(processes, rank, world, local_rank, batch, workers)
        outcome = make_features(path, out, settings, crew, options)
        rate = outcome.images / max(outcome.seconds, 1e-9)
        click.echo(
            f"rank {rank} of {world}: {outcome.images} images made in {outcome.seconds:.1f} s, "
            f"{rate:.1f} images/s of all ranks"
        )
        if outcome.manifest is None:
            click.echo(f"the last rank to finish writes {out}")
            return
        manifest = outcome.manifest
    _summary(path, out, manifest)


def _refuse_ignored(ctx: click.Context, given: str) -> None:
    """Raises `UsageError` for an option that nothing would read."""
    ignored, others = (_OF_MAKING, "--detector and --boxes") if given == "--from" else (_OF_READING, "--from")
    for name in ignored:
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(
                f"{option} goes with {others}, and does nothing with {given}: leave it out"
            )


def _read(
    path: Path, out: Path, sources: tuple[tuple[str, Path], ...], classes: Path | None, options: Options
) -> FeatureManifest:
    from dsvlp.data.dataset import Dataset
    from dsvlp.data.features.folder import read_folder
    from dsvlp.data.features.tsv import read_tsv
    from dsvlp.data.features.writer import write

    kinds, files = {kind for kind, _ in sources}, [file for _, file in sources]
    if "folder" in kinds and len(sources) > 1:
        raise click.UsageError("--from folder goes alone: --from tsv may be repeated, and not beside it")
    dataset = Dataset.open(path, "quick")
    if kinds == {"tsv"}:
        return write(read_tsv(files, dataset, classes), dataset, out, options)
    return write(read_folder(files[0], dataset, classes), dataset, out, options)


def _ranks() -> tuple[int, int, int]:
    """Returns rank, world size and local rank, as torchrun or srun tell them."""
    from dsvlp.launch.local import adopt_slurm

    adopt_slurm(os.environ)
    rank, world, local = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return int(rank or 0), int(world or 1), int(local or 0)


def _summary(path: Path, out: Path, manifest: FeatureManifest) -> None:
    import numpy as np

    from dsvlp.data.dataset import Dataset
    from dsvlp.data.features.stored import Features

    size = sum(record.bytes for record in manifest.files.values())
    click.echo(
        f"{out}: {manifest.images} images of {manifest.objects} objects, features of {manifest.width} "
        f"{manifest.dtype}, {size / 1e6:.1f} MB"
    )
    click.echo("adjusted: " + "\n          ".join(manifest.adjusted.lines() or ["nothing"]))
    rows = np.arange(min(manifest.images, _COUNTED))
    about = Features.open(out, Dataset.open(path, "quick")).about(rows)
    there = about["is_object"] != 0
    click.echo(f"objects:  {there.sum(1).mean():.1f} an image, in the first {len(rows)} images")
    if manifest.table is not None:
        counts = np.bincount(about["label"][there].clip(0), minlength=len(manifest.table.names))
        often = np.argsort(-counts, kind="stable")[:_SHOWN]
        named = [f"{manifest.table.names[k]} {counts[k]}" for k in often.tolist() if counts[k]]
        click.echo("classes:  " + ", ".join(named))
