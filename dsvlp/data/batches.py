"""From a plan to a `Batch` of pictures: rows are read, pictures made, texts tokenised, keys computed.

In two halves, so that the threads decode the next micro-batch while this one is put together:
`start` reads rows and hands the pictures to the threads, `finish` waits for them and does the texts.

Legend: I = G images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from dsvlp.data.annotations import padded_boxes
from dsvlp.data.augment import Crop, draw_crops, draw_flips, forbids_flip, whole
from dsvlp.data.bad import BadImages
from dsvlp.data.frames import Framing, Shape
from dsvlp.data.pairs import PairBuilder
from dsvlp.data.pictures import Job, PictureMaker, Pictures
from dsvlp.data.plan import Groups, Plan, Stream
from dsvlp.data.rows import StoredRow
from dsvlp.data.sources import Sources
from dsvlp.errors import DataError
from dsvlp.recipe import Augment
from dsvlp.types import Batch, Fetched

M = TypeVar("M", Batch, Fetched)

_ATTEMPTS = 100


@dataclass
class _Started:
    """A micro-batch whose pictures are being made; bad groups get replaced in it."""

    plan: Plan
    pictures: Pictures
    begun: Any
    jobs: list[Job]


class BatchBuilder:
    """Makes micro-batches. One thread calls it.

    Args:
        sources: the data sets, in the stream's order.
        stream: where substitutes of bad images come from.
        studio: makes the pictures; not closed here.
        framing: how large they become.
        pairs: makes what is no picture.
        augment: None: evaluation; bad images then count nothing instead of being replaced, so that no
            other sample counts twice.
        keep_area: a box stays while the crop keeps this share of its area.
        bad: where bad images are counted.
    """

    def __init__(
        self,
        sources: Sources,
        stream: Stream,
        studio: PictureMaker,
        framing: Framing,
        pairs: PairBuilder,
        augment: Augment | None,
        keep_area: float,
        bad: BadImages,
    ) -> None:
        self._sources, self._stream, self._pairs = sources, stream, pairs
        self._studio, self._framing, self._augment = studio, framing, augment
        self._keep_area, self._bad = keep_area, bad

    def start(self, plan: Plan) -> _Started:
        """Begins a micro-batch."""
        assert plan.canvas is not None, "a model of pixels"
        pictures = self._studio.blank(len(plan.groups.rows), plan.canvas)
        jobs = self._jobs(plan.groups, range(len(plan.groups.rows)), plan.canvas)
        return _Started(plan, pictures, self._studio.start(jobs, pictures), jobs)

    def finish(self, started: _Started) -> Batch:
        """Returns the micro-batch when its pictures are made.

        Raises:
            DataError: too many images are bad, or a label is in no table.
        """
        for place, fault in enumerate(self._studio.finish(started.begun, started.pictures)):
            self._bad.seen += 1
            if fault is not None:
                self._bad.note(started.jobs[place].name, fault.reason)
                self._replace(started, place)
        return self._assemble(started)

    def _jobs(self, groups: Groups, places: Sequence[int], canvas: Shape) -> list[Job]:
        rows = self._sources.read(groups.source, groups.rows)
        names = self._sources.names(groups.source, groups.rows)
        crops = self._crops(groups, rows, canvas)
        return [Job(*parts) for parts in zip(rows, crops, places, names, strict=True)]

    def _crops(self, groups: Groups, rows: Sequence[StoredRow], canvas: Shape) -> list[Crop]:
        if self._augment is None:
            return whole_crops(rows, self._framing, canvas, np.zeros(len(rows), bool))
        keys = self._stream.image_keys(groups)
        return training_crops(keys, rows, self._pairs.told(groups), self._framing, canvas, self._augment)

    def _replace(self, started: _Started, place: int) -> None:
        """Puts another group in the place of one whose image is bad; in evaluation, weight 0."""
        groups, canvas = started.plan.groups, started.pictures.canvas
        if self._augment is None:
            self._studio.erase([place], started.pictures)
            groups.weight[place] = 0
            return
        k = groups.samples.shape[1]
        partners = started.plan.partner_image[place * k : (place + 1) * k]
        original = groups.take(slice(place, place + 1))
        for attempt in range(_ATTEMPTS):
            other = self._stream.substitute(original, attempt)
            if other.images[0] in partners or other.images[0] == original.images[0]:
                continue  # its own caption would count as a mismatch
            job = self._jobs(other, [place], canvas)[0]
            (fault,) = self._studio.finish(self._studio.start([job], started.pictures), started.pictures)
            if fault is None:
                groups.put(place, other)
                started.jobs[place] = job
                return
            self._bad.note(job.name, fault.reason)
        raise DataError(
            f"{started.jobs[place].name} is bad and so were {_ATTEMPTS} images drawn in its place",
            "a data set of readable images",
            "`dsvlp data check` names the damaged file",
        )

    def _assemble(self, started: _Started) -> Batch:
        pictures = started.pictures
        wanted = self._studio.annotations.boxes is not None
        boxes = padded_boxes(pictures.boxes, self._keep_area) if wanted else (None, None)
        return self._pairs.batch(
            started.plan,
            images=pictures.images,
            image_mask=self._framing.mask([job.crop.frame for job in started.jobs], pictures.canvas),
            segmentation=pictures.segmentation,
            boxes_cxcywh=boxes[0],
            box_labels=boxes[1],
        )


def pinned(made: M) -> M:
    """Returns the same, what lies on the CPU in pinned memory: its copy to a GPU then waits for nothing."""
    host: dict[str, Any] = {
        f.name: tensor.pin_memory()
        for f in fields(made)
        if isinstance(tensor := getattr(made, f.name), Tensor) and tensor.device.type == "cpu"
    }
    return replace(made, **host)


def training_crops(
    keys: np.ndarray,
    rows: Sequence[StoredRow],
    captions: Sequence[str],
    framing: Framing,
    canvas: Shape,
    augment: Augment,
) -> list[Crop]:
    """Returns the training crops of images, drawn from their keys.

    Args:
        keys: int64 [I].
        rows: the stored images.
        captions: equally many of each image, image by image; one that a mirror image would make wrong
            forbids the flip.
        framing: squares are cropped at random; images that keep their aspect stay whole.
        canvas: of the batch.
        augment: the recipe's table.
    """
    allowed = [augment.flip and not forbids_flip(text, augment.flip_text_words) for text in captions]
    may_flip = np.logical_and.reduce(np.array(allowed, bool).reshape(len(rows), -1), axis=1)
    if framing.longest is not None:
        return whole_crops(rows, framing, canvas, draw_flips(keys, may_flip))
    heights, widths = _sizes(rows).T
    return draw_crops(keys, heights, widths, may_flip, framing.side, augment.scale, framing.filter)


def whole_crops(rows: Sequence[StoredRow], framing: Framing, canvas: Shape, flips: np.ndarray) -> list[Crop]:
    """Returns crops of whole images; a substitute's frame is made smaller where the canvas is too small.

    Args:
        rows: the stored images.
        framing: how large they become.
        canvas: of the batch.
        flips: bool [I], which are mirrored.
    """
    frames = framing.frames(_sizes(rows)).tolist()
    return [
        whole(row.height, row.width, framing.inside((height, width), canvas), bool(flip), framing.filter)
        for row, (height, width), flip in zip(rows, frames, flips, strict=True)
    ]


def _sizes(rows: Sequence[StoredRow]) -> np.ndarray:
    """Returns int64 [I, 2], the images' heights and widths."""
    return np.array([(row.height, row.width) for row in rows], np.int64).reshape(-1, 2)
