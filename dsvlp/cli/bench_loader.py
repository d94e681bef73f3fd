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

_LIBRARIES = ("torchvision", "pillow", "simplejpeg")
_LONG = {"dsvlp": "dsvlp", "simplejpeg": "DataLoader + simplejpeg", "pillow": "DataLoader + Pillow"}


@click.command()
@bench_turns.image_options(seconds=8.0, repeats=3, batch=32)
@click.option("--cores", default="", help="Cores to pin to, e.g. 0,1; all by default.")
@bench_turns.result_options
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
    source = bench_turns.source(data, photographs)
    saved = bench_turns.begin("loader", out, compare)
    pinned = [int(core) for core in cores.split(",")] if cores else sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        beton = data or bench.prepare(source, folder, images)
        bench.extract(beton, folder / "files", images)
        setting = bench.Setting(beton, folder / "files", size, batch, tuple(pinned), seconds)
        rates = bench.compare(setting, repeats)
    about = {
        "source": source.name,
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
