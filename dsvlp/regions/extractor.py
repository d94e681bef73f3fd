"""From stored pictures to regions: decode, find the objects, pool their features.

Threads decode the next pictures while these are looked at.

Legend: R images in a row, N objects of each, K of all, F feature width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from dsvlp.data.dataset import Dataset
from dsvlp.data.decode import BadImage, CPUDecoder, EncodedImage
from dsvlp.data.features.rows import RegionRows
from dsvlp.data.rows import RowReader, StoredRow
from dsvlp.data.threads import Threads
from dsvlp.errors import DataError, RunError
from dsvlp.regions.backbone import Backbone
from dsvlp.regions.objects import Objects, ObjectSource
from dsvlp.regions.pooling import pooled

_LARGEST = torch.finfo(torch.float16).max
_MEMORY_ENDED = ("out of memory", "not enough memory", "can't allocate memory")

_Begun = tuple[range, list[StoredRow], list[Future[np.ndarray | BadImage]]]


class Extractor:
    """Makes the regions of rows of one data set. Close it, or use it in `with`.

    Args:
        dataset: the pictures.
        source: finds the objects.
        backbone: gives their features.
        device: where both compute.
        batch: pictures at a time.
        workers: threads that decode; 0: none.
    """

    def __init__(
        self,
        dataset: Dataset,
        source: ObjectSource,
        backbone: Backbone,
        device: torch.device,
        batch: int,
        workers: int,
    ) -> None:
        self._dataset, self._source, self._backbone, self._device = dataset, source, backbone, device
        self._batch = batch
        self._rows = RowReader(dataset, source.annotations, 1)
        self._threads, self._decoder = Threads(workers), CPUDecoder()
        self._ids = np.array(source.table.ids)

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.close()

    def rows(self, wanted: range) -> RegionRows:
        """Returns the regions of successive rows.

        Raises:
            DataError: a picture cannot be decoded, or float16 does not hold its features; it is named.
            RunError: the memory does not hold a batch.
        """
        with _enough_memory(self._batch):
            parts = [self._looked_at(*batch) for batch in self._batches(wanted)]
        return RegionRows.joined(parts)

    def _batches(self, wanted: range) -> Iterator[tuple[range, list[Tensor], list[StoredRow]]]:
        """Yields rows' numbers, pictures uint8 [3, H, W] on the device, rows; the next are on their way."""
        before: _Begun | None = None
        for first in range(wanted.start, wanted.stop, self._batch):
            numbers = range(first, min(first + self._batch, wanted.stop))
            rows = self._rows.read(np.array(numbers))
            begun = numbers, rows, [self._threads.submit(lambda row=row: self._decode(row)) for row in rows]  # type: ignore[misc]
            if before is not None:
                yield before[0], self._pictures(*before), before[1]
            before = begun
        if before is not None:
            yield before[0], self._pictures(*before), before[1]

    def _decode(self, row: StoredRow) -> np.ndarray | BadImage:
        whole = EncodedImage(row.jpeg, row.height, row.width, row.height, row.width)
        return self._decoder.decode([whole])[0]

    def _pictures(
        self, numbers: range, rows: Sequence[StoredRow], futures: Sequence[Future[np.ndarray | BadImage]]
    ) -> list[Tensor]:
        out = []
        for number, future in zip(numbers, futures, strict=True):
            pixels = future.result()
            if isinstance(pixels, BadImage):
                raise DataError(
                    f"{self._dataset.path}: row {number} ({self._dataset.image_id(number)}): {pixels.reason}",
                    "a picture that decodes",
                    "`dsvlp data check` names all that are damaged",
                )
            out.append(torch.from_numpy(pixels).to(self._device).permute(2, 0, 1))
        return out

    def _looked_at(self, numbers: range, pictures: list[Tensor], rows: list[StoredRow]) -> RegionRows:
        objects, features = looked_at(self._source, self._backbone, pictures, rows)
        self._check(numbers, features)
        return self._packed(objects, features, rows)

    def _check(self, numbers: range, features: Tensor) -> None:
        """Raises `DataError` where float16 does not hold a feature of [R, N, F]."""
        bad = (~(features.abs() <= _LARGEST)).nonzero()  # not-a-number is not less either
        if not len(bad):
            return
        picture, place, column = bad[0].tolist()
        number = numbers[picture]
        raise DataError(
            f"{self._dataset.path}: row {number} ({self._dataset.image_id(number)}), object {place}: the "
            f"backbone made a feature of {float(features[picture, place, column]):g}",
            f"numbers of at most {_LARGEST:g}, as float16 holds",
            "See whether the backbone's weights are sound, or choose another; what is made stays",
        )

    def _packed(self, objects: Objects, features: Tensor, rows: Sequence[StoredRow]) -> RegionRows:
        mask = objects.mask
        sizes = torch.tensor([[row.width, row.height] * 2 for row in rows], device=self._device)
        boxes = objects.boxes * sizes[:, None]  # [R, N, 4], pixels
        return RegionRows(
            mask.sum(1).cpu().numpy(),
            features[mask].half().cpu().numpy(),
            boxes[mask].cpu().numpy(),
            self._ids[objects.labels[mask].cpu().numpy()],
            objects.confidences[mask].cpu().numpy(),
        )


def looked_at(
    source: ObjectSource, backbone: Backbone, pictures: Sequence[Tensor], rows: Sequence[StoredRow]
) -> tuple[Objects, Tensor]:
    """Returns the objects of pictures uint8 [3, H, W] and their features [R, N, F], on their device."""
    objects = source.find(pictures, rows)
    features = torch.zeros(*objects.mask.shape, backbone.width, device=objects.boxes.device)
    for places, maps in backbone.maps(pictures):
        features[places] = pooled(maps, objects.boxes[places])
    return objects, features


@contextmanager
def _enough_memory(batch: int) -> Iterator[None]:
    """Makes a sentence of what torch says where memory ends."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch's own is a RuntimeError, on the CPU a plain one
        said = str(error)
        if not isinstance(error, MemoryError) and not any(words in said for words in _MEMORY_ENDED):
            raise
        raise RunError(
            f"the memory does not hold what {batch} pictures need: {' '.join(said.split())[:200]}",
            "room for a batch",
            f"Give a smaller --batch than {batch}, or smaller pictures by --shorter and --longer",
        ) from error
