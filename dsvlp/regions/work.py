"""Makes the features of a data set: parts by any number of processes and ranks, then one folder of all.

Part n belongs to the worker n modulo their number, so that ranks need not know of each other: no process
group, no waiting. Whoever finishes last finds all parts there and joins them; if someone was killed, the
same command, with as many workers as one likes, goes on with the parts that are missing. A rank that comes
when all is done finds in the manifest that these are the features it was to make.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from dsvlp.data import manifest as manifests
from dsvlp.data.dataset import Dataset
from dsvlp.data.features import manifest as feature_manifest
from dsvlp.data.features import writer
from dsvlp.data.features.layout import row_bytes
from dsvlp.data.features.manifest import SUFFIX, FeatureManifest, Kind
from dsvlp.data.features.rows import RegionSource
from dsvlp.errors import DataError, RunError
from dsvlp.regions.backbone import RANDOM, Backbone, Sizes
from dsvlp.regions.content import content_of
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

    def arguments(self, dataset: Dataset) -> dict[str, Any]:
        """Returns everything that decides the features, as JSON; of local models also what they hold."""
        weights = None if self.weights == RANDOM else self.weights
        contents = {"detector_sha256": content_of(self.detector), "weights_sha256": content_of(weights)}
        local = {name: value for name, value in contents.items() if value is not None}
        return {"dataset": dataset.manifest.to_json()["digest"], **asdict(self), **local}


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
        manifest: of the features; None where other ranks still make parts, or one of them joins all.
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
    job = _Job(dataset, out, settings.arguments(dataset), options)
    parts = Parts(out, spans(dataset))
    if out.exists() and crew.world > 1 and options.force:
        raise DataError(
            f"{out} exists: a rank that comes late cannot tell it from what the others have just made",
            "no features of this name, where several ranks make them",
            f"Remove {out}, then start all ranks without --force",
        )
    if out.exists() and not options.force:
        if (there := job.finished()) is not None:
            parts.remove()  # a kill may have left them
        if crew.world == 1 or there is None:
            raise DataError(f"{out} exists", "a new name", "Choose another --out, or replace it with --force")
        return Outcome(there, 0, 0.0)
    parts.begin(job.arguments)
    if not options.force and (there := job.finished()) is not None:  # since the look above
        parts.remove()
        return Outcome(there, 0, 0.0)
    before, began = parts.rows_made(), time.monotonic()
    shown = crew.progress and crew.rank == 0
    with tqdm(total=dataset.images, initial=before, unit=" images", disable=not shown) as bar:
        for made in _making(_Work(path, parts, settings, crew, options.dtype)):
            bar.update(made - bar.n)
    images, seconds = max(0, parts.rows_made() - before), time.monotonic() - began
    manifest = None if parts.missing() else _join(parts, job, settings)
    return Outcome(manifest, images, seconds)


@dataclass(frozen=True)
class _Job:
    """What is to be made, and where."""

    dataset: Dataset
    out: Path
    arguments: dict[str, Any]
    options: writer.Options

    @property
    def source(self) -> str:
        """What the manifest names as source: equal for equal features."""
        told = json.dumps([self.arguments, self.options.dtype], sort_keys=True)
        return f"dsvlp data features, arguments {hashlib.sha256(told.encode()).hexdigest()[:16]}"

    def finished(self) -> FeatureManifest | None:
        """Returns the manifest of these very features where they stand already."""
        if not (self.out / manifests.NAME).is_file():
            return None
        manifest = feature_manifest.load(self.out)
        return manifest if manifest.source == self.source else None


def _join(parts: Parts, job: _Job, settings: Settings) -> FeatureManifest | None:
    """Joins all parts and returns the manifest; None where another process is about it."""
    with parts.joining() as alone:
        if alone:
            return writer.write(_joined(parts, job, settings), job.dataset, job.out, job.options)
    return None if job.options.force else job.finished()


@dataclass(frozen=True)
class _Work:
    """What this rank's processes need to know."""

    path: Path
    parts: Parts
    settings: Settings
    crew: Crew
    dtype: Kind

    def do(self, process: int, share: list[int]) -> Iterator[None]:
        """Makes one process's parts one by one and yields after each."""
        settings, parts, device = self.settings, self.parts, self.crew.device(process)
        dataset = Dataset.open(self.path, "quick")
        source = object_source(dataset, settings, device)
        backbone = Backbone(settings.backbone, settings.weights, settings.sizes, device)
        _check_room(parts, dataset.images, settings.objects, backbone.width, self.dtype)
        parts.describe(source.table, backbone.width)
        with Extractor(dataset, source, backbone, device, self.crew.batch, self.crew.workers) as extractor:
            for number in share:
                parts.write(number, extractor.rows(parts.spans[number]))
                yield


def _making(work: _Work) -> Iterator[int]:
    """Makes this rank's missing parts; yields, now and then, how many rows all ranks have made."""
    parts, crew = work.parts, work.crew
    missing = parts.missing()
    shares = [crew.share(process, missing) for process in range(crew.processes)]
    jobs = [(work, process, share) for process, share in enumerate(shares) if share]
    if crew.processes > 1:
        for _ in run_members(_work_beside, jobs, _LOOK_SECONDS):
            yield parts.rows_made()
    elif jobs:
        for _ in work.do(*jobs[0][1:]):
            yield parts.rows_made()


def _work_beside(work: _Work, process: int, share: list[int]) -> None:
    """Makes one process's parts, in a process of its own that has its part of the cores."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // work.crew.processes))
    for _ in work.do(process, share):
        pass


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


def _joined(parts: Parts, job: _Job, settings: Settings) -> RegionSource:
    """Returns all parts as one source."""
    table, width = parts.description()
    return RegionSource(
        name=job.source,
        detector=settings.detector or f"{settings.boxes} boxes",
        backbone=f"{settings.backbone}, weights {settings.weights or settings.backbone}",
        width=width,
        table=table,
        rows=parts.rows_from,
        arguments=job.arguments,
    )


def _check_room(parts: Parts, images: int, objects: int, width: int, dtype: Kind) -> None:
    """Raises `RunError` where the disk cannot hold what is to come: parts in float16, then the features."""
    a_part, a_row = (sum(row_bytes(objects, width, kind)) for kind in ("float16", dtype))
    needed = (images - parts.rows_made()) * a_part + images * a_row
    free = shutil.disk_usage(parts.folder.parent).free
    if needed > free:
        raise RunError(
            f"{parts.folder.parent} has {free / 1e9:.1f} GB free",
            f"{needed / 1e9:.1f} GB for {images} images, as parts and then as one",
            "Write to a larger disk, or ask for fewer --objects" + (" or --int8" if dtype != "int8" else ""),
        )
