"""Micro-batches of objects: stored regions become a batch's images. No picture is read or decoded.

In two halves as for pictures: `start` hands the rows to the threads, which copy them straight from the
mapped files into their places; `finish` waits and does the texts.

Legend: I images, N objects of an image, F feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dsvlp.data.buffers import Buffers
from dsvlp.data.features.layout import OBJECT
from dsvlp.data.features.stored import Features
from dsvlp.data.lane import Lane
from dsvlp.data.pairs import PairBuilder
from dsvlp.data.plan import Plan
from dsvlp.data.threads import Threads
from dsvlp.types import Batch

_IDLE_BUFFERS = 8
_IMAGES_A_JOB = 4  # 1.6 MB of 100 objects: long beside what a job costs


@dataclass(frozen=True)
class Objects:
    """The objects of a micro-batch while they are read and after.

    Attributes:
        images: float16 [I, N, F + 4]: feature, then left, top, right, bottom as shares of the image.
        about: `layout.OBJECT` [I, N].
    """

    images: Tensor
    about: np.ndarray

    def fields(self) -> dict[str, Tensor]:
        """Returns the fields of a `Batch` that hold them."""
        there = self.about["is_object"] != 0
        return {
            "images": self.images,
            "image_mask": torch.from_numpy(there),
            "object_labels": torch.from_numpy(self.about["label"].astype(np.int64)),
            "object_confidences": torch.from_numpy(self.about["confidence"].copy()),
        }


class ObjectReader:
    """Reads objects in threads. One thread calls it.

    Args:
        features: of the data sets, in the order that numbers them; all of one N and F.
        workers: threads; 0 works in the calling thread.
        pinned: whether images lie in pinned memory, for a GPU that will fetch them.
    """

    def __init__(self, features: Sequence[Features], workers: int, pinned: bool) -> None:
        self.lane = Lane(torch.device("cpu"))
        self._features, self._pinned = features, pinned
        self._buffers = Buffers(_IDLE_BUFFERS, np.float16)
        self._threads = Threads(workers)

    def blank(self, count: int) -> Objects:
        """Returns the unread objects of `count` images."""
        first = self._features[0]
        shape = (count, first.objects, first.width + 4)
        # torch keeps pinned memory until the last copy out of it is done; `Buffers` knows of no copies.
        images = (
            torch.empty(shape, dtype=torch.float16, pin_memory=True)
            if self._pinned
            else self._buffers.take(shape)
        )
        return Objects(images, np.empty(shape[:2], OBJECT))

    def start(self, source: np.ndarray, rows: np.ndarray, out: Objects) -> list[Future[None]]:
        """Begins to read rows int64 [I] of the data sets `source` int64 [I]."""
        begun = []
        for number in np.unique(source):
            places = np.flatnonzero(source == number)
            for begin in range(0, len(places), _IMAGES_A_JOB):
                part = places[begin : begin + _IMAGES_A_JOB]
                work = partial(_read, self._features[int(number)], rows[part], part, out)
                begun.append(self._threads.submit(work))
        return begun

    def close(self, wait: bool = True) -> None:
        """Ends the threads. `wait`: until they have ended."""
        self._threads.close(wait)


def _read(features: Features, rows: np.ndarray, places: np.ndarray, out: Objects) -> None:
    images, width = out.images.numpy(), features.width
    for place, row in zip(places.tolist(), rows.tolist(), strict=True):
        features.read_into(row, images[place, :, :width], out.about[place])
        images[place, :, width:] = out.about["box"][place]


def read_images(features: Features, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Returns images float16 [I, N, F + 4] and their mask [I, N] of rows int64 [I], as a batch has them."""
    regions = features.read(rows)
    images = np.concatenate([regions.features, regions.boxes.astype(np.float16)], axis=2)
    return torch.from_numpy(images), torch.from_numpy(regions.mask)


@dataclass
class _Started:
    plan: Plan
    objects: Objects
    begun: list[Future[None]]


class ObjectBatchBuilder:
    """Makes micro-batches of objects. One thread calls it.

    Args:
        reader: reads the objects; not closed here.
        pairs: makes what is no image.
    """

    def __init__(self, reader: ObjectReader, pairs: PairBuilder) -> None:
        self._reader, self._pairs = reader, pairs

    def start(self, plan: Plan) -> _Started:
        """Begins a micro-batch."""
        objects = self._reader.blank(len(plan.groups.rows))
        return _Started(plan, objects, self._reader.start(plan.groups.source, plan.groups.rows, objects))

    def finish(self, started: _Started) -> Batch:
        """Returns the micro-batch when its objects are read."""
        for future in started.begun:
            future.result()
        return self._pairs.batch(started.plan, **started.objects.fields())
