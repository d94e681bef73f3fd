"""From stored rows to tensors on a GPU: the JPEGs' bytes go there, not their pixels.

`start` is the CPU's half: threads read each JPEG off the disk into one pinned piece of memory, judge whether
a GPU may decode it, and unpack its map. `finish` is the GPU's, in the loader's thread and on the loader's
own stream: the micro-batch is decoded, cropped, resized, mirrored and normalised. What the GPU may not or
cannot decode goes to the strict decoder on the CPU, image by image, and its pixels are sent; what that one
refuses is a `BadImage`. So which decoder an image comes from depends on its bytes alone, never on its
neighbours.

Legend: I images, H x W the canvas, h x w a decoded image.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dsvlp.data.annotations import Annotations, PlacedBoxes
from dsvlp.data.decode import BadImage, CPUDecoder, Decoder, DeviceDecoder
from dsvlp.data.decoders.whole import is_whole
from dsvlp.data.frames import Shape
from dsvlp.data.lane import Lane
from dsvlp.data.pictures import Job, PictureMaker, Pictures, Studio
from dsvlp.data.place import place_images, place_maps
from dsvlp.data.threads import Threads
from dsvlp.errors import RunError

log = logging.getLogger(__name__)

_PIXELS_AT_ONCE = 1 << 28  # 768 MiB of decoded images; one larger than that alone is the CPU's
_MOST_SHRUNK = 16  # beyond, the CPU decodes at an eighth; torch's kernel has a limit, near 100


@dataclass(frozen=True)
class _Prepared:
    """An image after the CPU's half: its bytes where the GPU is to decode them, else its pixels.

    Attributes:
        jpeg: uint8 [bytes] in the staging memory, or None.
        pixels: uint8 [h, w, 3], or None.
        classes: int32 [H, W], the map's classes, or None.
        boxes: in the output, or None.
    """

    job: Job
    jpeg: Tensor | None
    pixels: np.ndarray | None
    classes: np.ndarray | None
    boxes: PlacedBoxes | None


class DeviceStudio:
    """Makes pictures on a GPU; a `PictureMaker`.

    Args:
        decoder: the backend; its device is where the pictures lie.
        workers: threads for the CPU's half; 0 works in the calling thread.
        annotations: what is read beside the images.

    Attributes:
        refused: images that the GPU was given and did not decode.
    """

    def __init__(self, decoder: DeviceDecoder, workers: int, annotations: Annotations) -> None:
        self.annotations, self.lane = annotations, Lane(decoder.device)
        self.refused = 0
        self._decoder, self._cpu = decoder, CPUDecoder()
        self._threads = Threads(workers)

    def blank(self, count: int, canvas: Shape) -> Pictures:
        """Returns the unmade pictures of `count` images on a canvas of this height and width."""
        maps = None
        with self.lane.open():
            if self.annotations.segmentation is not None:
                maps = torch.full((count, *canvas), -1, device=self.lane.device)
            images = torch.zeros(count, 3, *canvas, device=self.lane.device)
        return Pictures(images, maps, [None] * count)

    def start(self, jobs: Sequence[Job], out: Pictures) -> list[Future[_Prepared | BadImage]]:
        """Begins the CPU's half of images."""
        sizes = [job.row.jpeg.size for job in jobs]
        pieces = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=self.lane.device.type == "cuda").split(
            sizes
        )
        return [
            self._threads.submit(lambda job=job, piece=piece: self._prepare(job, piece))  # type: ignore[misc]
            for job, piece in zip(jobs, pieces, strict=True)
        ]

    def finish(self, begun: Sequence[Future[_Prepared | BadImage]], out: Pictures) -> list[BadImage | None]:
        """Does the GPU's half; returns what is wrong with each image. The GPU may still be at work.

        Raises:
            DataError: a stored label is not in the label table.
            RunError: the GPU's memory does not suffice.
        """
        results = [future.result() for future in begun]
        faults: list[BadImage | None] = [each if isinstance(each, BadImage) else None for each in results]
        prepared = {number: each for number, each in enumerate(results) if isinstance(each, _Prepared)}
        with self.lane.open():
            for numbers in _chunks(prepared):
                self._place(numbers, prepared, faults, out)
        return faults

    def erase(self, places: Sequence[int], out: Pictures) -> None:
        """Makes images mean grey."""
        with self.lane.open():
            for place in places:
                out.images[place].zero_()

    def close(self, wait: bool = True) -> None:
        """Ends the threads. `wait`: until they have ended."""
        self._threads.close(wait)

    def _prepare(self, job: Job, piece: Tensor) -> _Prepared | BadImage:
        row, crop = job.row, job.crop
        classes = self.annotations.map_of(row, job.name)
        if isinstance(classes, BadImage):
            return classes
        boxes = self.annotations.boxes_of(row, crop, job.name)
        shrunk = max(crop.height / crop.target_height, crop.width / crop.target_width)
        fits = row.height * row.width <= _PIXELS_AT_ONCE and shrunk <= _MOST_SHRUNK
        if fits and is_whole(row.jpeg, row.height, row.width):
            piece.numpy()[:] = row.jpeg
            return _Prepared(job, piece, None, classes, boxes)
        pixels = self._cpu.decode([job.request()])[0]
        return pixels if isinstance(pixels, BadImage) else _Prepared(job, None, pixels, classes, boxes)

    def _place(
        self,
        numbers: list[int],
        prepared: dict[int, _Prepared],
        faults: list[BadImage | None],
        out: Pictures,
    ) -> None:
        """Decodes and places some images on the lane; notes in `faults` what cannot be decoded at all."""
        pixels = self._pixels([prepared[number] for number in numbers])
        for number, found in zip(numbers, pixels, strict=True):
            if isinstance(found, BadImage):
                faults[number] = found
        good = [prepared[number] for number in numbers if faults[number] is None]
        if not good:
            return
        jobs = [each.job for each in good]
        places = self.lane.send(np.array([job.place for job in jobs]))
        sources = [(job.row.height, job.row.width) for job in jobs]
        tensors = [found for found in pixels if isinstance(found, Tensor)]
        crops = [job.crop for job in jobs]
        out.images.index_copy_(0, places, place_images(tensors, crops, sources, out.canvas, self.lane))
        mapped = [each for each in good if each.classes is not None]
        for each in good:
            out.boxes[each.job.place] = each.boxes
        if out.segmentation is not None and mapped:
            places = self.lane.send(np.array([each.job.place for each in mapped]))
            maps = [each.classes for each in mapped if each.classes is not None]
            crops = [each.job.crop for each in mapped]
            out.segmentation.index_copy_(0, places, place_maps(maps, crops, out.canvas, self.lane))

    def _pixels(self, prepared: Sequence[_Prepared]) -> list[Tensor | BadImage]:
        """Returns uint8 [3, h, w] on the device for each, or what is wrong with it."""
        decoded = iter(self._decode([each.jpeg for each in prepared if each.jpeg is not None]))
        return [
            self._sent(each.pixels) if each.pixels is not None else self._accepted(next(decoded), each.job)
            for each in prepared
        ]

    def _accepted(self, found: Tensor | None, job: Job) -> Tensor | BadImage:
        """Returns what the GPU has made of an image, or what the CPU makes of it where that is no use."""
        shape = (3, job.row.height, job.row.width)
        if found is not None and found.shape == shape and found.dtype == torch.uint8:
            return found
        if not self.refused:
            log.warning(
                "%s did not decode %s, the CPU does; told once, later ones are counted only",
                self._decoder.name,
                job.name,
            )
        self.refused += 1
        pixels = self._cpu.decode([job.request()])[0]
        return pixels if isinstance(pixels, BadImage) else self._sent(pixels)

    def _sent(self, pixels: np.ndarray) -> Tensor:
        return self.lane.send(pixels.transpose(2, 0, 1))

    def _decode(self, jpegs: list[Tensor]) -> list[Tensor | None]:
        """Returns what the GPU makes of JPEGs; a list that fails is halved until the bad ones are alone."""
        if not jpegs:
            return []
        self.lane.settle()
        try:
            return self._decoder.decode(jpegs)
        except RuntimeError as error:
            if "out of memory" in str(error):
                raise RunError(
                    f"{self._decoder.name} cannot decode {len(jpegs)} JPEGs: the GPU's memory is full",
                    f"up to {_PIXELS_AT_ONCE * 3 >> 20} MiB for them beside the training step",
                    "Lower batch.micro_pairs, or decode on the CPU: data.decoder=cpu",
                ) from error
        self.lane.settle_device()  # what failed may still be writing into memory that it has given back
        if len(jpegs) == 1:
            return [None]
        half = len(jpegs) // 2
        return self._decode(jpegs[:half]) + self._decode(jpegs[half:])


def _chunks(prepared: dict[int, _Prepared]) -> Iterator[list[int]]:
    """Yields the images' numbers in order, of not too many pixels together."""
    chunk: list[int] = []
    pixels = 0
    for number, each in prepared.items():
        own = each.job.row.height * each.job.row.width
        if chunk and pixels + own > _PIXELS_AT_ONCE:
            yield chunk
            chunk, pixels = [], 0
        chunk.append(number)
        pixels += own
    if chunk:
        yield chunk


def make_studio(decoder: Decoder | DeviceDecoder, workers: int, annotations: Annotations) -> PictureMaker:
    """Returns what makes pictures with a backend: on its device, or on the CPU.

    Args:
        decoder: what `decoders.open` gave.
        workers: threads.
        annotations: what is read beside the images.
    """
    if isinstance(decoder, DeviceDecoder):
        return DeviceStudio(decoder, workers, annotations)
    return Studio(decoder, workers, annotations, pinned=torch.cuda.is_available())
