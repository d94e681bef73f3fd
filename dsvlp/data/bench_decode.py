"""The measurement behind `dsvlp bench decode`: from JPEG bytes to pixels, by backend.

Twice: **decode** is the backend alone, whole images of a micro-batch; **pixels** is what the loader makes
of them: decoded as far as the crop needs, cropped, resized, mirrored and normalised, the next micro-batch
begun while this one is finished. Every backend in turns, the same images in the same crops.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch

from dsvlp.data.annotations import Annotations
from dsvlp.data.augment import draw_crops
from dsvlp.data.bench_loader import Rate
from dsvlp.data.dataset import Dataset
from dsvlp.data.decode import BadImage, Decoder, DeviceDecoder
from dsvlp.data.decoders.open import BACKENDS, open_decoder
from dsvlp.data.device_studio import make_studio
from dsvlp.data.lane import Lane
from dsvlp.data.pictures import Job
from dsvlp.data.rows import RowReader
from dsvlp.errors import DataError, DsvlpError

WORKS = ("decode", "pixels")
_SCALE = (0.8, 1.2)


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        images: how many different ones.
        size: side of the output.
        batch: images a micro-batch.
        workers: threads beside the calling one, as in `data.workers`.
        seconds: how long each measurement lasts at least.
    """

    images: int
    size: int
    batch: int
    workers: int
    seconds: float


def backends(device: torch.device) -> tuple[dict[str, Decoder | DeviceDecoder], dict[str, str]]:
    """Returns (name -> backend of those that work here, name -> why not of the others)."""
    working: dict[str, Decoder | DeviceDecoder] = {}
    absent: dict[str, str] = {}
    for name in ("cpu", *BACKENDS):
        try:
            working[name] = open_decoder(name, device)
        except DsvlpError as error:
            absent[name] = error.found
    return working, absent


def batches(dataset: Dataset, setting: Setting) -> list[list[Job]]:
    """Returns the jobs of all micro-batches; one that is not full is left out.

    Raises:
        DataError: the data set has fewer images than a micro-batch.
    """
    count = min(setting.images, dataset.images)
    if count < setting.batch:
        raise DataError(
            f"{dataset.path} has {count} images",
            f"a micro-batch of {setting.batch}",
            "Give a smaller --batch",
        )
    rows = RowReader(dataset, frozenset(), 1).read(np.arange(count))
    heights, widths = (np.array([getattr(row, side) for row in rows]) for side in ("height", "width"))
    crops = draw_crops(np.arange(count), heights, widths, np.ones(count, bool), setting.size, _SCALE)
    jobs = [
        Job(row, crop, number % setting.batch, f"image {number}")
        for number, (row, crop) in enumerate(zip(rows, crops, strict=True))
    ]
    full = count // setting.batch * setting.batch
    return [jobs[first : first + setting.batch] for first in range(0, full, setting.batch)]


def measure(decoder: Decoder | DeviceDecoder, work: str, jobs: Sequence[list[Job]], setting: Setting) -> Rate:
    """Returns a backend's rate at "decode" or "pixels".

    Raises:
        DataError: an image that it refuses.
    """
    device = decoder.device if isinstance(decoder, DeviceDecoder) else torch.device("cpu")
    if work == "decode":
        return _rate(_decoded(decoder, jobs), setting, device)
    studio = make_studio(decoder, setting.workers, Annotations(None, None))
    try:

        def made() -> Iterator[None]:
            before = None
            for batch in cycle(jobs):
                out = studio.blank(len(batch), (setting.size, setting.size))
                begun = studio.start(batch, out)
                if before is not None:
                    _check(studio.finish(*before))
                    yield
                before = begun, out

        return _rate(made(), setting, device)
    finally:
        studio.close()


def _decoded(decoder: Decoder | DeviceDecoder, jobs: Sequence[list[Job]]) -> Iterator[None]:
    """Decodes a micro-batch at each turn."""
    if isinstance(decoder, DeviceDecoder):
        yield from _decoded_on(decoder, jobs)
    else:
        for batch in cycle(jobs):
            _check(decoder.decode([job.request() for job in batch]))
            yield


def _decoded_on(decoder: DeviceDecoder, jobs: Sequence[list[Job]]) -> Iterator[None]:
    """Decodes on a lane, and waits before each call for what may still use memory that was given back: as
    the loader does."""
    lane = Lane(decoder.device)
    jpegs = [[torch.from_numpy(job.row.jpeg.copy()) for job in batch] for batch in jobs]
    for batch, bytes_of_batch in cycle(zip(jobs, jpegs, strict=True)):
        with lane.open():
            lane.settle()
            pixels = decoder.decode(bytes_of_batch)
        for job, image in zip(batch, pixels, strict=True):
            if image is None:
                _check([BadImage(f"{job.name}: {decoder.name} refuses it")])
        yield


def _rate(turns: Iterator[None], setting: Setting, device: torch.device) -> Rate:
    """Returns images a second and a CPU-second of one micro-batch a turn; the first turns warm up."""
    for _ in range(2):
        next(turns)
    _wait(device)
    images, begin, begin_cpu = 0, time.perf_counter(), time.process_time()
    while not images or time.perf_counter() - begin < setting.seconds:
        next(turns)
        images += setting.batch
    _wait(device)
    return Rate(images / (time.perf_counter() - begin), images / (time.process_time() - begin_cpu), images)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _check(results: Sequence[object]) -> None:
    for each in results:
        if isinstance(each, BadImage):
            raise DataError(
                f"an image cannot be decoded: {each.reason}", "whole images", "`dsvlp data check`"
            )
