"""From a plan to a `Batch`: rows are read, pictures made, texts tokenised, keys computed.

In two halves, so that the threads decode the next micro-batch while this one is put together:
`start` reads rows and hands the pictures to the threads, `finish` waits for them and does the texts.

Legend: I = G images, k captions each, P = I k pairs, T texts, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dsvlp.data.annotations import padded_boxes
from dsvlp.data.augment import Crop, draw_crops, forbids_flip, whole
from dsvlp.data.bad import BadImages
from dsvlp.data.pictures import Job, PictureMaker, Pictures
from dsvlp.data.plan import Groups, Plan, Stream
from dsvlp.data.rows import StoredRow
from dsvlp.data.sources import Sources
from dsvlp.data.text import Tokenizer
from dsvlp.errors import DataError
from dsvlp.recipe import Augment
from dsvlp.types import Batch, Fetched

M = TypeVar("M", Batch, Fetched)

_ATTEMPTS = 100


@dataclass(frozen=True)
class Texts:
    """How texts become ids.

    Attributes:
        tokenizer: the tokenizer.
        max_length: L.
        swap: whether each pair also brings its partner's text.
    """

    tokenizer: Tokenizer
    max_length: int
    swap: bool


@dataclass
class _Started:
    """A micro-batch whose pictures are being made; bad groups get replaced in it."""

    plan: Plan
    pictures: Pictures
    begun: Any
    names: list[str]


class BatchBuilder:
    """Makes micro-batches. One thread calls it.

    Args:
        sources: the data sets, in the stream's order.
        stream: where substitutes of bad images come from.
        studio: makes the pictures; not closed here.
        texts: tokenizer and lengths.
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
        texts: Texts,
        augment: Augment | None,
        keep_area: float,
        bad: BadImages,
    ) -> None:
        self._sources, self._stream = sources, stream
        self._studio, self._texts, self._augment = studio, texts, augment
        self._keep_area, self._bad = keep_area, bad

    def start(self, plan: Plan) -> _Started:
        """Begins a micro-batch."""
        pictures = self._studio.blank(len(plan.groups.rows))
        jobs = self._jobs(plan.groups, range(len(plan.groups.rows)))
        return _Started(plan, pictures, self._studio.start(jobs, pictures), [job.name for job in jobs])

    def finish(self, started: _Started) -> Batch:
        """Returns the micro-batch when its pictures are made.

        Raises:
            DataError: too many images are bad, or a label is in no table.
        """
        for place, fault in enumerate(self._studio.finish(started.begun, started.pictures)):
            self._bad.seen += 1
            if fault is not None:
                self._bad.note(started.names[place], fault.reason)
                self._replace(started, place)
        return self._assemble(started.plan, started.pictures)

    def _jobs(self, groups: Groups, places: Sequence[int]) -> list[Job]:
        rows = self._sources.read(groups.source, groups.rows)
        names = self._sources.names(groups.source, groups.rows)
        return [Job(*parts) for parts in zip(rows, self._crops(groups, rows), places, names, strict=True)]

    def _crops(self, groups: Groups, rows: Sequence[StoredRow]) -> list[Crop]:
        size = self._studio.size
        if self._augment is None:
            return [whole(row.height, row.width, size) for row in rows]
        keys = self._stream.image_keys(groups)
        return training_crops(keys, rows, self._own_texts(groups), size, self._augment)

    def _replace(self, started: _Started, place: int) -> None:
        """Puts another group in the place of one whose image is bad; in evaluation, weight 0."""
        groups = started.plan.groups
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
            job = self._jobs(other, [place])[0]
            (fault,) = self._studio.finish(self._studio.start([job], started.pictures), started.pictures)
            if fault is None:
                groups.put(place, other)
                return
            self._bad.note(job.name, fault.reason)
        raise DataError(
            f"{started.names[place]} is bad and so were {_ATTEMPTS} images drawn in its place",
            "a data set of readable images",
            "`dsvlp data check` names the damaged file",
        )

    def _assemble(self, plan: Plan, pictures: Pictures) -> Batch:
        groups = plan.groups
        count, k = groups.samples.shape
        pairs = torch.arange(count * k)
        ids, mask, special = self._encode(plan)
        wanted = self._studio.annotations.boxes is not None
        boxes = padded_boxes(pictures.boxes, self._keep_area) if wanted else (None, None)
        samples = self._sources.sample_numbers(groups.source[:, None], groups.samples)
        return Batch(
            images=pictures.images,
            text_ids=ids,
            text_mask=mask,
            special_mask=special,
            pairs=torch.stack([pairs // k, pairs], 1),
            partner=pairs + count * k if self._texts.swap else pairs,
            matched=torch.from_numpy(plan.matched.copy()),
            weight=torch.from_numpy(groups.weight.reshape(-1).copy()),
            image_keys=torch.from_numpy(self._stream.image_keys(groups)),
            pair_keys=torch.from_numpy(self._stream.pair_keys(groups)),
            segmentation=pictures.segmentation,
            boxes_cxcywh=boxes[0],
            box_labels=boxes[1],
            samples=torch.from_numpy(samples.reshape(-1)),
            rows=torch.from_numpy(self._sources.row_numbers(groups.source, groups.rows)),
        )

    def _encode(self, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        """Returns ids, mask and special mask [T, L]: the pairs' own texts, then their partners'."""
        texts = self._own_texts(plan.groups)
        if self._texts.swap:
            texts += self._sources.texts(plan.partner_source, plan.partner_sample)
        ids, mask, special = self._texts.tokenizer.encode(texts, self._texts.max_length)
        return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(special)

    def _own_texts(self, groups: Groups) -> list[str]:
        k = groups.samples.shape[1]
        return self._sources.texts(np.repeat(groups.source, k), groups.samples.reshape(-1))


def pinned(made: M) -> M:
    """Returns the same, what lies on the CPU in pinned memory: its copy to a GPU then waits for nothing."""
    host: dict[str, Any] = {
        f.name: tensor.pin_memory()
        for f in fields(made)
        if isinstance(tensor := getattr(made, f.name), Tensor) and tensor.device.type == "cpu"
    }
    return replace(made, **host)


def training_crops(
    keys: np.ndarray, rows: Sequence[StoredRow], captions: Sequence[str], size: int, augment: Augment
) -> list[Crop]:
    """Returns the training crops of images, drawn from their keys.

    Args:
        keys: int64 [I].
        rows: the stored images.
        captions: equally many of each image, image by image; one that a mirror image would make wrong
            forbids the flip.
        size: S.
        augment: the recipe's table.
    """
    allowed = [augment.flip and not forbids_flip(text, augment.flip_text_words) for text in captions]
    may_flip = np.logical_and.reduce(np.array(allowed, bool).reshape(len(rows), -1), axis=1)
    heights, widths = (np.array([getattr(row, side) for row in rows]) for side in ("height", "width"))
    return draw_crops(keys, heights, widths, may_flip, size, augment.scale)
