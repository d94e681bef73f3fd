"""The measurement behind `dsvlp bench loader`: images a second and images a CPU-second, side by side.

Every contestant runs in a process of its own on the same pinned cores, in turns; a repetition
measures them all once. CPU-seconds are those of the process and all its workers between the first
and the last measured batch: they say what a core can do whatever else runs on the machine.
"""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import psutil
import torch
from PIL import Image

from dsvlp import recipe as recipes
from dsvlp.data import bench_rivals
from dsvlp.data.dataset import Dataset
from dsvlp.data.loader import Loader
from dsvlp.data.readers.base import Reader
from dsvlp.data.rows import RowReader
from dsvlp.data.text import train_wordpiece
from dsvlp.data.writer import Options, write
from dsvlp.errors import DataError
from dsvlp.types import ImageSource, Sample

CONTESTANTS = ("dsvlp", "simplejpeg", "pillow")
SIZES = ((500, 375), (640, 480))
_QUALITY = 90
_WARM_UP_BATCHES = 4


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        data: the `.beton` data set; the rivals read its JPEGs as files from `files`.
        files: folder of the same JPEGs.
        size: side of the output.
        batch: images a batch.
        cores: the cores all contestants are pinned to; a worker each.
        seconds: how long each measurement lasts at least.
    """

    data: Path
    files: Path
    size: int
    batch: int
    cores: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Rate:
    """One measurement.

    Attributes:
        images_per_second, images_per_cpu_second: as they say.
        images: how many were counted.
    """

    images_per_second: float
    images_per_cpu_second: float
    images: int


def prepare(photographs: Path, folder: Path, count: int, sizes: tuple[tuple[int, int], ...] = SIZES) -> Path:
    """Writes a data set of `count` JPEGs made of the photographs in a folder, of each size in turn.

    Raises:
        DataError: there is no JPEG in the folder.
    """
    sources = sorted([*photographs.glob("*.jpg"), *photographs.glob("*.jpeg")])
    if not sources:
        raise DataError(
            f"{photographs} has no .jpg", "a folder of photographs", "Give --photographs or --data"
        )
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        with Image.open(sources[number // len(sizes) % len(sources)]) as image:
            resized = image.convert("RGB").resize(sizes[number % len(sizes)], Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        resized.save(buffer, "JPEG", quality=_QUALITY)
        (raw / f"{number:06d}.jpg").write_bytes(buffer.getvalue())
    out = folder / "bench.beton"
    write(Reader("bench", str(photographs), lambda: _samples(raw)), out, Options(1, progress=False))
    return out


def extract(data: Path, folder: Path, count: int) -> None:
    """Writes the first `count` JPEGs of a data set as files, byte for byte."""
    dataset = Dataset.open(data, verify="quick")
    reader = RowReader(dataset, frozenset(), 1)
    folder.mkdir(parents=True, exist_ok=True)
    for row in range(min(count, dataset.images)):
        stored = reader.read(torch.tensor([row]).numpy())[0]
        (folder / f"{row:06d}.jpg").write_bytes(stored.jpeg.tobytes())


def compare(setting: Setting, repetitions: int) -> dict[str, list[Rate]]:
    """Returns every contestant's measurements, taken in turns; the turns' order is shuffled each time."""
    rates: dict[str, list[Rate]] = {name: [] for name in CONTESTANTS}
    turns = random.Random(0)
    for _ in range(repetitions):
        for name in turns.sample(CONTESTANTS, len(CONTESTANTS)):
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                rates[name].append(process.submit(measure, name, setting).result())
    return rates


def measure(contestant: str, setting: Setting) -> Rate:
    """Returns one contestant's rate, measured in this process."""
    os.sched_setaffinity(0, setting.cores)
    torch.set_num_threads(1)
    if contestant == "dsvlp":
        with _loader(setting) as loader:
            return _rate((batch.images for batch in loader), setting.seconds)
    paths = sorted(setting.files.glob("*.jpg"))
    rival = bench_rivals.batches(contestant, paths, setting.size, setting.batch, len(setting.cores))
    return _rate(rival, setting.seconds)


def _rate(batches: Iterator[torch.Tensor], seconds: float) -> Rate:
    for _ in islice(batches, _WARM_UP_BATCHES):
        pass
    images, begin, begin_cpu = 0, time.perf_counter(), _cpu_seconds()
    for batch in batches:
        images += len(batch)
        if time.perf_counter() - begin > seconds:
            break
    wall, cpu = time.perf_counter() - begin, _cpu_seconds() - begin_cpu
    return Rate(images / wall, images / cpu, images)


def _cpu_seconds() -> float:
    """Returns the CPU time of this process and of all its living workers."""
    this = psutil.Process()
    times = [process.cpu_times() for process in [this, *this.children(recursive=True)]]
    return float(sum(entry.user + entry.system for entry in times))


def _loader(setting: Setting) -> Loader:
    dataset = Dataset.open(setting.data, verify="quick")
    tokenizer = train_wordpiece(dataset.texts(range(min(1000, dataset.manifest.texts))), 4096)
    recipe = recipes.load(
        "tiny_svl",
        [
            "objectives.segl=false",
            "objectives.itm=false",
            "model.image.patch_size=32",
            f"model.image_size={setting.size}",
            f"batch.global_pairs={setting.batch}",
            f"batch.micro_pairs={setting.batch}",
            f"data.workers={len(setting.cores)}",
        ],
    )
    return Loader(recipe, [dataset], tokenizer, rank=0, world=1, split="train")


def _samples(folder: Path) -> Iterator[Sample]:
    for path in sorted(folder.glob("*.jpg")):
        yield Sample(
            "caption", (ImageSource(path.name, path),), f"a photograph number {path.stem}", where=str(path)
        )
