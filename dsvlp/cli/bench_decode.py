"""`dsvlp bench decode`: JPEG bytes to pixels by backend, on the CPU and on a GPU."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import torch

from dsvlp import dist
from dsvlp.cli import bench_turns
from dsvlp.data import bench_decode as bench
from dsvlp.data import bench_loader
from dsvlp.data.bench_loader import Rate
from dsvlp.data.dataset import Dataset
from dsvlp.engine.bench_figures import Figure
from dsvlp.engine.bench_result import result

_LIBRARIES = ("torchvision", "torchcodec", "nvidia-nvimgcodec-cu12", "nvidia-nvimgcodec-cu13", "simplejpeg")
_SIZE = ((640, 480),)
_LONG = {"decode": "decode alone", "pixels": "decode, crop, resize, normalise"}


@click.command()
@bench_turns.image_options(seconds=3.0, repeats=5, batch=64)
@click.option(
    "--workers", type=click.IntRange(min=0), default=2, show_default=True, help="Threads, as data.workers."
)
@bench_turns.result_options
def command(
    data: Path | None,
    photographs: Path | None,
    seconds: float,
    repeats: int,
    size: int,
    batch: int,
    workers: int,
    images: int,
    out: Path | None,
    compare: Path | None,
) -> None:
    """Measure images a second and a CPU-second from JPEG bytes to training pixels, by backend.

    Every backend that works here: the CPU's, and those of `data.decoder` where there is a GPU.
    """
    source = bench_turns.source(data, photographs)
    saved = bench_turns.begin("decode", out, compare)
    setting = bench.Setting(images, size, batch, workers, seconds)
    working, absent = bench.backends(dist.device())
    for name, why in absent.items():
        click.echo(f"{name}: {why}")
    rates: dict[tuple[str, str], list[Rate]] = {(name, work): [] for name in working for work in bench.WORKS}
    with tempfile.TemporaryDirectory() as folder:
        beton = data or bench_loader.prepare(source, Path(folder), images, _SIZE)
        jobs = bench.batches(Dataset.open(beton, verify="quick"), setting)
        for _ in range(repeats):
            for (name, work), found in rates.items():
                found.append(bench.measure(working[name], work, jobs, setting))
    figures = []
    for (name, work), found in rates.items():
        title = f"{name} ({working[name].name}): {_LONG[work]}"
        figures.append(Figure(title, "images/s", [rate.images_per_second for rate in found]))
        figures.append(
            Figure(
                f"{title}, of a CPU-second", "images/CPU-s", [rate.images_per_cpu_second for rate in found]
            )
        )
    about = {"source": source.name, **vars(setting), "repeats": repeats, "threads": torch.get_num_threads()}
    made = result("decode", figures, about, dist.device(), _LIBRARIES)
    click.echo("")
    bench_turns.finish(made, out, saved)
