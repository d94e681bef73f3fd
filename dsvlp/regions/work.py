"""Makes the features of a data set: parts by any number of processes and ranks, then one folder of all.

Part n belongs to the worker n modulo their number, so that ranks need not know of each other: no process
group, no waiting. Whoever finishes last finds all parts there and joins them; if someone was killed, the
same command, with as many workers as one likes, goes on with the parts that are missing.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from dsvlp.data.dataset import Dataset
from dsvlp.data.features import writer
from dsvlp.data.features.manifest import SUFFIX, FeatureManifest
from dsvlp.data.features.rows import RegionSource
from dsvlp.errors import DataError, RunError
from dsvlp.regions.backbone import Backbone, Sizes
from dsvlp.regions.detector import Detector
from dsvlp.regions.extractor import Extractor
from dsvlp.regions.members import run_members
from dsvlp.regions.objects import GivenBoxes, GridBoxes, ObjectSource
from dsvlp.regions.parts import Parts, spans

_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Settings:
    """What decides the features.

    Attributes:
        boxes: a detector's, those of the data set, or the cells of a grid.
        detector: hub name or folder, with boxes = "detector".
        backbone: timm's name.
        weights: timm checkpoint, by name or file; None: the backbone's own; "random": drawn.
        objects: N of an image.
        sizes: of the pictures that the backbone sees.
    """

    boxes: Literal["detector", "given", "grid"]
    detector: str | None
    backbone: str
    weights: str | None
    objects: int
    sizes: Sizes


@dataclass(frozen=True)
class Crew:
    """Who works: what decides the time, and nothing of the result.

    Attributes:
        processes: on this machine, for this rank; GPUs are dealt to them.
        rank, world: this rank among all that were started together.
        local_rank: this rank among those of this machine.
        batch: pictures at a time.
        workers: threads a process that decode.
        progress: show a bar.
    """

    processes: int = 1
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    batch: int = 8
    workers: int = 2
    progress: bool = True

    def device(self, process: int) -> torch.device:
        """Returns where one of this rank's processes computes."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", (self.local_rank * self.processes + process) % torch.cuda.device_count())

    def share(self, process: int, parts: list[int]) -> list[int]:
        """Returns the parts, of those given, that are one process's."""
        workers = self.world * self.processes
        return [number for number in parts if number % workers == self.rank * self.processes + process]


@dataclass(frozen=True)
class Outcome:
    """What one command did.

    Attributes:
        manifest: of the features; None where other ranks still make parts, the last of whom joins all.
        images: that were made meanwhile, by all ranks.
        seconds: that it took to make them.
    """

    manifest: FeatureManifest | None
    images: int
    seconds: float


def make_features(path: Path, out: Path, settings: Settings, crew: Crew, options: writer.Options) -> Outcome:
    """Makes the features of the data set `path`.

    Raises:
        DataError: the data set, the models or the output do not serve, or a process was killed.
        RunError: memory or disk are too small.
    """
    dataset = Dataset.open(path, "quick")
    if out.suffix != SUFFIX:
        raise DataError(f"{out} is no name of region features", f"X{SUFFIX}", f"Set --out {out}{SUFFIX}")
    if out.exists() and not options.force:
        raise DataError(f"{out} exists", "a new name", "Choose another --out, or replace it with --force")
    parts = Parts(out, spans(dataset))
    parts.begin({"dataset": dataset.manifest.to_json()["digest"], **asdict(settings)})
    before, began = parts.rows_made(), time.monotonic()
    shown = crew.progress and crew.rank == 0
    with tqdm(total=dataset.images, initial=before, unit=" images", disable=not shown) as bar:
        for made in _making(path, parts, settings, crew):
            bar.update(made - bar.n)
    images, seconds = parts.rows_made() - before, time.monotonic() - began
    manifest = None if parts.missing() else _join(parts, dataset, out, settings, options)
    return Outcome(manifest, images, seconds)


def _join(
    parts: Parts, dataset: Dataset, out: Path, settings: Settings, options: writer.Options
) -> FeatureManifest | None:
    """Joins all parts and returns the manifest; None where another process does."""
    with parts.alone() as alone:
        if not alone or (out.exists() and not options.force):
            return None
        manifest = writer.write(_joined(parts, settings), dataset, out, options)
        parts.remove()
    return manifest


def _making(path: Path, parts: Parts, settings: Settings, crew: Crew) -> Iterator[int]:
    """Makes this rank's missing parts; yields, now and then, how many rows all ranks have made."""
    missing = parts.missing()
    shares = [crew.share(process, missing) for process in range(crew.processes)]
    jobs = [(path, parts, settings, crew, process, share) for process, share in enumerate(shares) if share]
    if crew.processes > 1:
        for _ in run_members(_work_beside, jobs, _LOOK_SECONDS):
            yield parts.rows_made()
    elif jobs:
        for _ in _work(*jobs[0]):
            yield parts.rows_made()


def _work_beside(
    path: Path, parts: Parts, settings: Settings, crew: Crew, process: int, share: list[int]
) -> None:
    """Makes one process's parts, in a process of its own that has its part of the cores."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // crew.processes))
    for _ in _work(path, parts, settings, crew, process, share):
        pass


def _work(
    path: Path, parts: Parts, settings: Settings, crew: Crew, process: int, share: list[int]
) -> Iterator[None]:
    """Makes parts one by one and yields after each."""
    dataset, device = Dataset.open(path, "quick"), crew.device(process)
    source = object_source(dataset, settings, device)
    backbone = Backbone(settings.backbone, settings.weights, settings.sizes, device)
    _check_room(parts, dataset.images, 2 * settings.objects * backbone.width)
    parts.describe(source.table, backbone.width)
    with Extractor(dataset, source, backbone, device, crew.batch, crew.workers) as extractor:
        for number in share:
            parts.write(number, extractor.rows(parts.spans[number]))
            yield


def object_source(dataset: Dataset, settings: Settings, device: torch.device) -> ObjectSource:
    """Returns what finds the objects.

    Raises:
        DataError: there is no such detector, or the data set has no boxes.
    """
    if settings.boxes == "given":
        return GivenBoxes(dataset, settings.objects)
    if settings.boxes == "grid":
        return GridBoxes(settings.objects)
    assert settings.detector is not None, "boxes = 'detector' names one"
    return Detector.load(settings.detector, settings.objects, device)


def _joined(parts: Parts, settings: Settings) -> RegionSource:
    """Returns all parts as one source."""
    table, width = parts.description()
    return RegionSource(
        name="dsvlp data features",
        detector=settings.detector or f"{settings.boxes} boxes",
        backbone=f"{settings.backbone}, weights {settings.weights or settings.backbone}",
        width=width,
        table=table,
        rows=parts.rows_from,
        arguments=asdict(settings),
    )


def _check_room(parts: Parts, images: int, row_bytes: int) -> None:
    """Raises `RunError` where the disk cannot hold the rows that are to come, as parts and as features."""
    needed = (2 * images - parts.rows_made()) * row_bytes
    free = shutil.disk_usage(parts.folder).free
    if needed > free:
        raise RunError(
            f"{parts.folder.parent} has {free / 1e9:.1f} GB free",
            f"{needed / 1e9:.1f} GB for {images} images, as parts and then as one",
            "Write to a larger disk, or ask for fewer --objects",
        )
