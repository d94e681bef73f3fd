"""`dsvlp bench loader`: the loader beside torch's DataLoader on the same images and cores."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from dsvlp import dist
from dsvlp.cli import bench_turns
from dsvlp.data import bench_loader as bench
from dsvlp.data.bench_loader import Rate
from dsvlp.engine.bench_figures import Figure
from dsvlp.engine.bench_result import result
from dsvlp.reports import bench as reports

_LIBRARIES = ("torchvision", "pillow", "simplejpeg")
_LONG = {"dsvlp": "dsvlp", "simplejpeg": "DataLoader + simplejpeg", "pillow": "DataLoader + Pillow"}
_path = click.Path(path_type=Path)


@click.command()
@click.option("--data", type=_path, help="Measure on the images of this .beton.")
@click.option("--photographs", type=_path, help="Or on copies of this folder's JPEGs, 500x375 and 640x480.")
@click.option("--seconds", default=8.0, show_default=True, help="Of each measurement.")
@click.option("--repeats", default=3, show_default=True, help="Measurements of each loader, in turns.")
@click.option("--size", default=384, show_default=True, help="Side of the output, pixels; a multiple of 32.")
@click.option("--batch", default=32, show_default=True, help="Images a batch.")
@click.option("--cores", default="", help="Cores to pin to, e.g. 0,1; all by default.")
@click.option("--images", default=512, show_default=True, help="How many different images.")
@bench_turns.out_option
@bench_turns.compare_option
def command(
    data: Path | None,
    photographs: Path | None,
    seconds: float,
    repeats: int,
    size: int,
    batch: int,
    cores: str,
    images: int,
    out: Path | None,
    compare: Path | None,
) -> None:
    """Measure images a second and a CPU-second: this loader, DataLoader + simplejpeg, DataLoader + Pillow."""
    given = [path for path in (data, photographs) if path is not None]
    if len(given) != 1:
        raise click.UsageError("give either --data X.beton or --photographs FOLDER")
    saved = reports.read(compare, "loader") if compare is not None else None
    bench_turns.ready(out)
    pinned = [int(core) for core in cores.split(",")] if cores else sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        beton = data if data is not None else bench.prepare(given[0], folder, images)
        bench.extract(beton, folder / "files", images)
        setting = bench.Setting(beton, folder / "files", size, batch, tuple(pinned), seconds)
        rates = bench.compare(setting, repeats)
    about = {
        "source": given[0].name,
        "images": images,
        "size": size,
        "batch": batch,
        "cores": pinned,
        "seconds": seconds,
        "repeats": repeats,
    }
    bench_turns.finish(result("loader", figures(rates), about, dist.device(), _LIBRARIES), out, saved)


def figures(rates: dict[str, list[Rate]]) -> list[Figure]:
    """Returns the rows: each loader's rates, and how many times a rival's dsvlp's is, turn by turn."""
    rows = []
    for name, found in rates.items():
        wall, cpu = ([getattr(rate, key) for rate in found] for key in _KEYS)
        rows.append(Figure(_LONG[name], "images/s", wall))
        rows.append(Figure(f"{_LONG[name]}, of a CPU-second", "images/CPU-s", cpu))
        if name != "dsvlp":
            ours = [rate.images_per_cpu_second for rate in rates["dsvlp"]]
            times = [mine / theirs for mine, theirs in zip(ours, cpu, strict=True)]
            rows.append(Figure(f"dsvlp beside {_LONG[name]}, of a CPU-second", "times", times))
    return rows


_KEYS = ("images_per_second", "images_per_cpu_second")
