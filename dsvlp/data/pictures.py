"""From stored rows to tensors on the CPU: decode, crop, resize, normalise; maps and boxes moved along.

Each image is one job for a pool of threads (the decoder, torch and NumPy release the GIL), which
writes straight into its place of the micro-batch's tensor. Jobs never raise on what stands in a file:
they return a `BadImage`. What they raise is meant for the user (a label that no table knows).
`device_studio` is the counterpart for a GPU, with the same methods.

Legend: I images, K boxes, H x W the canvas of a batch (`frames`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dsvlp.data.annotations import Annotations, PlacedBoxes
from dsvlp.data.augment import Crop, place_image, place_map
from dsvlp.data.buffers import Buffers
from dsvlp.data.decode import BadImage, Decoder, EncodedImage
from dsvlp.data.frames import Shape
from dsvlp.data.lane import Lane
from dsvlp.data.rows import StoredRow
from dsvlp.data.threads import Threads

_IDLE_BUFFERS = 8


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

    def request(self) -> EncodedImage:
        """Returns what the CPU must decode: the source so large that the crop is never enlarged for it."""
        row, crop = self.row, self.crop
        height = -(-row.height * crop.target_height // crop.height)
        width = -(-row.width * crop.target_width // crop.width)
        return EncodedImage(row.jpeg, row.height, row.width, height, width)


@dataclass(frozen=True)
class Pictures:
    """The images of a micro-batch while they are made and after.

    Attributes:
        images: float32 [I, 3, H, W], normalised; undefined until made.
        segmentation: int64 [I, H, W], -1 to ignore, or None.
        boxes: for each image its boxes in its frame, or None.
    """

    images: Tensor
    segmentation: Tensor | None
    boxes: list[PlacedBoxes | None]

    @property
    def canvas(self) -> Shape:
        """H and W."""
        return self.images.shape[2], self.images.shape[3]


class PictureMaker(Protocol):
    """What makes the pictures of micro-batches. One thread calls it, but `lane.hand_over`.

    Attributes:
        annotations: what is read beside the images.
        lane: the device that the pictures lie on.
    """

    annotations: Annotations
    lane: Lane

    def blank(self, count: int, canvas: Shape) -> Pictures:
        """Returns the unmade pictures of `count` images on a canvas of this height and width."""

    def start(self, jobs: Sequence[Job], out: Pictures) -> Any:
        """Begins images; what it returns belongs to `finish`."""

    def finish(self, begun: Any, out: Pictures) -> list[BadImage | None]:
        """Waits for the images of a `start`; returns what is wrong with each, None where it is made.

        Raises:
            DataError: a stored label is not in the label table.
        """

    def erase(self, places: Sequence[int], out: Pictures) -> None:
        """Makes images mean grey."""

    def close(self, wait: bool = True) -> None:
        """Ends the threads. `wait`: until they have ended."""


class Studio:
    """Makes pictures on the CPU.

    Args:
        decoder: the backend.
        workers: threads; 0 works in the calling thread.
        annotations: what is read beside the images.
        pinned: whether the images lie in pinned memory, for a GPU that will fetch them.
    """

    def __init__(
        self, decoder: Decoder, workers: int, annotations: Annotations, pinned: bool = False
    ) -> None:
        self.annotations, self.lane = annotations, Lane(torch.device("cpu"))
        self._decoder, self._pinned = decoder, pinned
        self._buffers = Buffers(_IDLE_BUFFERS)
        self._threads = Threads(workers)

    def blank(self, count: int, canvas: Shape) -> Pictures:
        """Returns the unmade pictures of `count` images on a canvas of this height and width."""
        shape, maps = (count, 3, *canvas), None
        if self.annotations.segmentation is not None:
            maps = torch.full((count, *canvas), -1, pin_memory=self._pinned)
        # torch keeps pinned memory until the last copy out of it is done; `Buffers` knows of no copies.
        images = torch.empty(shape, pin_memory=True) if self._pinned else self._buffers.take(shape)
        return Pictures(images, maps, [None] * count)

    def start(self, jobs: Sequence[Job], out: Pictures) -> list[Future[BadImage | None]]:
        """Begins images; each future says None where its image is made, or what is wrong with it."""
        return [self._threads.submit(lambda job=job: self._make(job, out)) for job in jobs]  # type: ignore[misc]

    def finish(self, begun: Sequence[Future[BadImage | None]], out: Pictures) -> list[BadImage | None]:
        """Waits for the images of a `start`; returns what is wrong with each.

        Raises:
            DataError: a stored label is not in the label table.
        """
        return [future.result() for future in begun]

    def erase(self, places: Sequence[int], out: Pictures) -> None:
        """Makes images mean grey."""
        out.images[list(places)] = 0

    def close(self, wait: bool = True) -> None:
        """Ends the threads. `wait`: until they have ended."""
        self._threads.close(wait)

    def _make(self, job: Job, out: Pictures) -> BadImage | None:
        row, crop = job.row, job.crop
        pixels = self._decoder.decode([job.request()])[0]
        if isinstance(pixels, BadImage):
            return pixels
        classes = self.annotations.map_of(row, job.name)
        if isinstance(classes, BadImage):
            return classes
        if classes is not None and out.segmentation is not None:
            out.segmentation[job.place] = torch.from_numpy(place_map(classes, crop, out.canvas))
        out.boxes[job.place] = self.annotations.boxes_of(row, crop, job.name)
        place_image(pixels, crop, (row.height, row.width), out.images[job.place])
        return None
