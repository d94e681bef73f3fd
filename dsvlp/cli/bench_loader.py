"""`dsvlp bench loader`: the loader beside torch's DataLoader on the same images and cores."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import click

from dsvlp import __version__
from dsvlp.data import bench_loader as bench
from dsvlp.reports import table

_HEAD = ("loader", "images/s", "images/CPU-s", "lowest", "highest", "dsvlp's CPU-s rate is ... times this")
_LIBRARIES = ("ffcv", "torch", "torchvision", "numpy", "pillow", "simplejpeg")
_LONG = {"dsvlp": "dsvlp", "simplejpeg": "DataLoader + simplejpeg", "pillow": "DataLoader + Pillow"}
_path = click.Path(path_type=Path)


@click.command()
@click.option("--data", type=_path, help="Measure on the images of this .beton.")
@click.option("--photographs", type=_path, help="Or on copies of this folder's JPEGs, 500x375 and 640x480.")
@click.option("--seconds", default=8.0, show_default=True, help="Of each measurement.")
@click.option("--repetitions", default=3, show_default=True, help="Measurements of each loader, in turns.")
@click.option("--size", default=384, show_default=True, help="Side of the output, pixels; a multiple of 32.")
@click.option("--batch", default=32, show_default=True, help="Images a batch.")
@click.option("--cores", default="", help="Cores to pin to, e.g. 0,1; all by default.")
@click.option("--images", default=512, show_default=True, help="How many different images.")
@click.option("--out", type=_path, help="Write the result as JSON.")
def command(
    data: Path | None,
    photographs: Path | None,
    seconds: float,
    repetitions: int,
    size: int,
    batch: int,
    cores: str,
    images: int,
    out: Path | None,
) -> None:
    """Measure images a second and a CPU-second: this loader, DataLoader + simplejpeg, DataLoader + Pillow."""
    given = [path for path in (data, photographs) if path is not None]
    if len(given) != 1:
        raise click.UsageError("give either --data X.beton or --photographs FOLDER")
    pinned = [int(core) for core in cores.split(",")] if cores else sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        beton = data if data is not None else bench.prepare(given[0], folder, images)
        bench.extract(beton, folder / "files", images)
        setting = bench.Setting(beton, folder / "files", size, batch, tuple(pinned), seconds)
        result = bench.summary(bench.compare(setting, repetitions))
    click.echo(table.text(_HEAD, [_line(name, entry) for name, entry in result.items()]))
    about = {
        "source": given[0].name,
        "images": images,
        "size": size,
        "batch": batch,
        "cores": pinned,
        "seconds": seconds,
        "repetitions": repetitions,
        **_machine(),
    }
    click.echo("\n" + ", ".join(f"{key} {value}" for key, value in about.items()))
    if out is not None:
        out.write_text(json.dumps({"setting": about, "loaders": result}, indent=1), encoding="utf-8")


def _line(name: str, entry: dict[str, Any]) -> list[table.Cell]:
    low, high = entry["images_per_cpu_second_range"]
    return [
        _LONG[name],
        entry["images_per_second"],
        entry["images_per_cpu_second"],
        low,
        high,
        entry["ratio_per_cpu_second"],
    ]


def _machine() -> dict[str, str]:
    """Returns the processor and the versions of what was measured."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "python": platform.python_version(),
        "dsvlp": __version__,
        **{name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
