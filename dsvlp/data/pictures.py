"""From stored rows to tensors: decode, crop, resize, normalise; maps and boxes moved along.

Each image is one job for a pool of threads (the decoder, torch and NumPy release the GIL), which
writes straight into its place of the micro-batch's tensor. Jobs never raise on what stands in a file:
they return a `BadImage`. What they raise is meant for the user (a label that no table knows).

Legend: I images, K boxes, S the side.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dsvlp.data.augment import Crop, place_boxes, place_image, place_map
from dsvlp.data.buffers import Buffers
from dsvlp.data.decode import BadImage, Decoder, EncodedImage
from dsvlp.data.rows import StoredRow
from dsvlp.errors import DataError
from dsvlp.types import LabelTable

R = TypeVar("R")

_IDLE_BUFFERS = 8
_UNKNOWN = -2  # in a look-up table of labels: no class and not ignored
_IDS = 1 << 16


@dataclass(frozen=True)
class Job:
    """One image to be made.

    Attributes:
        row: what is stored.
        crop: where the output takes its pixels.
        place: its row in the batch.
        name: data set and image id, for messages.
    """

    row: StoredRow
    crop: Crop
    place: int
    name: str


@dataclass(frozen=True)
class Pictures:
    """The images of a micro-batch while they are made and after.

    Attributes:
        images: float32 [I, 3, S, S], normalised; zeros until made.
        segmentation: int64 [I, S, S], -1 to ignore, or None.
        boxes: for each image (cxcywh [K, 4], classes [K], share of the area left [K]), or None.
    """

    images: Tensor
    segmentation: Tensor | None
    boxes: list[tuple[np.ndarray, np.ndarray, np.ndarray] | None]


class Studio:
    """Makes pictures by a pool of threads; `close` ends them.

    Args:
        decoder: the backend.
        size: S.
        workers: threads; 0 works in the calling thread.
        segmentation: the maps' label table where maps are wanted.
        boxes: the boxes' label table where boxes are wanted.
    """

    def __init__(
        self,
        decoder: Decoder,
        size: int,
        workers: int,
        segmentation: LabelTable | None = None,
        boxes: LabelTable | None = None,
    ) -> None:
        self.decoder, self.size = decoder, size
        self._map_classes = _class_of_id(segmentation) if segmentation else None
        self._box_classes = _class_of_id(boxes) if boxes else None
        self.segmentation, self.boxes = segmentation, boxes
        self._buffers = Buffers(_IDLE_BUFFERS)
        self._pool = single_threaded_pool(workers) if workers else None

    def blank(self, count: int) -> Pictures:
        """Returns the unmade pictures of `count` images."""
        maps = torch.full((count, self.size, self.size), -1) if self._map_classes is not None else None
        return Pictures(self._buffers.take((count, 3, self.size, self.size)), maps, [None] * count)

    def start(self, job: Job, out: Pictures) -> Future[BadImage | None]:
        """Begins an image; the future says None where it is made, or what is wrong with it."""
        return self._submit(lambda: self.make(job, out))

    def make(self, job: Job, out: Pictures) -> BadImage | None:
        """Makes an image in this thread.

        Raises:
            DataError: a stored label is not in the label table.
        """
        row, crop = job.row, job.crop
        pixels = self.decoder.decode([_request(row, crop)])[0]
        if isinstance(pixels, BadImage):
            return pixels
        if out.segmentation is not None and row.map_png.size:
            stored = _decode_map(row)
            if isinstance(stored, BadImage):
                return stored
            classes = self._classes(stored, self._map_classes, 0, job.name)
            out.segmentation[job.place] = torch.from_numpy(place_map(classes, crop, self.size))
        if self._box_classes is not None:
            labels = self._classes(row.box_labels, self._box_classes, 1, job.name)
            boxes, share = place_boxes(row.boxes_xyxy, crop, self.size)
            out.boxes[job.place] = boxes, labels, share
        place_image(pixels, crop, (row.height, row.width), out.images[job.place])
        return None

    def close(self, wait: bool = True) -> None:
        """Ends the pool's threads; images that have not begun are dropped. `wait`: until they have ended."""
        if self._pool is not None:
            self._pool.shutdown(wait=wait, cancel_futures=True)

    def _submit(self, work: Callable[[], R]) -> Future[R]:
        if self._pool is not None:
            return self._pool.submit(work)
        future: Future[R] = Future()
        try:
            future.set_result(work())
        except DataError as error:
            future.set_exception(error)
        return future

    def _classes(self, stored: np.ndarray, lookup: np.ndarray | None, table: int, name: str) -> np.ndarray:
        assert lookup is not None
        inside = stored[(stored >= 0) & (stored < _IDS)] if stored.dtype.itemsize > 2 else stored
        classes = lookup[stored] if inside.size == stored.size else None
        if classes is None or (classes == _UNKNOWN).any():
            known = (self.segmentation, self.boxes)[table]
            assert known is not None
            unknown = sorted(set(np.unique(stored).tolist()) - {*known.ids, known.ignore})
            raise DataError(
                f"{name} has the {('segmentation', 'box')[table]} label {unknown[0]}",
                f"an id of the label table {known.name!r} ({len(known.ids)} classes)",
                "Write the data set again with the right label table",
            )
        return classes


def single_threaded_pool(workers: int) -> ThreadPoolExecutor:
    """Returns a pool whose threads run torch's operations in one thread each.

    The pool is the parallelism; torch's own threads under it would fight for the same cores. torch
    keeps the count a thread, but a new thread inherits the last one set, hence it is set back here.
    """
    before = torch.get_num_threads()
    ready = threading.Barrier(workers + 1)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="dsvlp-decode")

    def begin() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # what a thread has set holds only once it has asked
        ready.wait(60)

    for _ in range(workers):
        pool.submit(begin)
    ready.wait(60)
    torch.set_num_threads(before)
    return pool


def _request(row: StoredRow, crop: Crop) -> EncodedImage:
    """Returns what the decoder must give: the source large enough that the crop is never enlarged for it."""
    height = -(-row.height * crop.target_height // crop.height)
    width = -(-row.width * crop.target_width // crop.width)
    return EncodedImage(row.jpeg, row.height, row.width, height, width)


def _decode_map(row: StoredRow) -> np.ndarray | BadImage:
    try:
        with Image.open(io.BytesIO(row.map_png.tobytes()), formats=["PNG"]) as image:
            stored = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        return BadImage(f"its map cannot be decoded: {error}")
    if stored.shape != (row.height, row.width):
        return BadImage(f"its map has the shape {stored.shape}, the image is {row.height} x {row.width}")
    return stored


def _class_of_id(table: LabelTable) -> np.ndarray:
    """Returns int32 [65536]: stored id -> class, -1 to ignore, -2 where the table does not know it."""
    lookup = np.full(_IDS, _UNKNOWN, np.int32)
    if table.ignore is not None:
        lookup[table.ignore] = -1
    lookup[list(table.ids)] = np.arange(len(table.ids))
    return lookup


def padded_boxes(
    boxes: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray] | None], keep_area: float
) -> tuple[Tensor, Tensor]:
    """Returns boxes float32 [I, K, 4] and classes int64 [I, K] of a micro-batch, padded with 0 and -1.

    A box of which the crop left nothing, or less than `keep_area` of its area, gets the class -1.
    """
    most = max(1, *(len(entry[1]) if entry else 0 for entry in boxes), 1)
    cxcywh, classes = torch.zeros(len(boxes), most, 4), torch.full((len(boxes), most), -1)
    for number, entry in enumerate(boxes):
        if entry is None:
            continue
        count = len(entry[1])
        kept = (entry[2] > 0) & (entry[2] >= keep_area)
        cxcywh[number, :count] = torch.from_numpy(entry[0])
        classes[number, :count] = torch.from_numpy(np.where(kept, entry[1], -1).astype(np.int64))
    return cxcywh, classes
