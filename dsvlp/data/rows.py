"""Rows of `.beton` shards by number, through FFCV's reader and its compiled decoders.

`ffcv.loader.Loader` itself is not used, for three reasons that were measured or reproduced: its
memory manager builds Python dictionaries of sets over the allocation table (0.64 GB and 4.5 s for a
shard of 10^6 rows of two values); it is one thread and one compilation a shard, over an order
that is fixed when the epoch begins, where we need rows of several shards and sources in one
micro-batch, from any position on; and its thread dies silently on an exception. What serves us is
underneath: the file format, the fields, and `Graph`, which compiles a pipeline of decoders. The
compiled code takes a shard's metadata as an argument, so one compilation serves every shard, and it
yields pointers alone (`fields.ImagePointer`): the bytes are slices of the shard's memory map. Nothing
is copied, and there is no ring of buffers whose slots could be overwritten under a batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dsvlp.data.beton import AllocationQuery, Graph, HeaderType, PipelineSpec, Reader, get_metadata_type
from dsvlp.data.dataset import Dataset
from dsvlp.data.fields import ROW
from dsvlp.errors import DataError


@dataclass(frozen=True)
class StoredRow:
    """One row as it lies in the shard.

    Attributes:
        jpeg: uint8 [bytes], a view of the file.
        height, width: pixels, as the writer noted them.
        boxes_xyxy: float32 [K, 4] in pixels.
        box_labels: int32 [K], stored ids.
        map_png: uint8 [bytes], empty where the image has no map.
    """

    jpeg: np.ndarray
    height: int
    width: int
    boxes_xyxy: np.ndarray
    box_labels: np.ndarray
    map_png: np.ndarray


class RowReader:
    """Reads rows of a data set in any order; at most `open_shards` shards stay mapped.

    One thread uses a reader at a time; the rows it returned stay valid when their shard is closed.

    Args:
        dataset: the opened, checked data set.
        annotations: what is read beside the image: "segmentation", "boxes".
        open_shards: how many shards stay open.
    """

    def __init__(self, dataset: Dataset, annotations: frozenset[str], open_shards: int) -> None:
        self._dataset = dataset
        self._fields = _fields(annotations)
        self._limit = open_shards
        self._open: OrderedDict[int, _Shard] = OrderedDict()

    def read(self, rows: np.ndarray) -> list[StoredRow]:
        """Returns the rows of numbers int64 [N], in this order.

        Raises:
            DataError: a shard has vanished or changed since it was checked.
        """
        shards, local = self._dataset.locate(rows)
        out: list[StoredRow | None] = [None] * len(rows)
        for number in np.unique(shards):
            places = np.flatnonzero(shards == number)
            for place, row in zip(places, self._shard(int(number)).read(local[places]), strict=True):
                out[place] = row
        return out  # type: ignore[return-value]

    def _shard(self, number: int) -> _Shard:
        if number in self._open:
            self._open.move_to_end(number)
        else:
            if len(self._open) >= self._limit:
                self._open.popitem(last=False)
            shard = self._dataset.shards[number]
            self._open[number] = _Shard(shard.path, shard.rows, self._fields)
        return self._open[number]


class _Shard:
    """An open FFCV file: mapped bytes, mapped metadata, the compiled pipeline."""

    def __init__(self, path: Path, rows: int, fields: tuple[str, ...]) -> None:
        try:
            self._metadata = _MappedReader(str(path), ROW).metadata
            self._bytes = np.asarray(np.memmap(path, np.uint8, "r"))
        except (OSError, ValueError, AssertionError) as error:
            raise DataError(
                f"{path} cannot be opened: {error}", fix="`dsvlp data check` names the damage"
            ) from error
        if len(self._metadata) != rows:
            raise DataError(f"{path} has {len(self._metadata)} rows", f"{rows}, as the manifest says")
        self._pipeline = compiled(fields)

    def read(self, rows: np.ndarray) -> list[StoredRow]:
        pointers = self._pipeline.run(rows, self._metadata)
        nothing = np.zeros((len(rows), 2), np.int64)
        columns = [pointers.get(name, nothing) for name in ROW]
        return [self._row(*(column[k] for column in columns)) for k in range(len(rows))]

    def _row(self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, png: np.ndarray) -> StoredRow:
        return StoredRow(
            self._slice(image),
            int(image[2]),
            int(image[3]),
            np.frombuffer(self._slice(boxes), "<f4").reshape(-1, 4),
            np.frombuffer(self._slice(labels), "<i4"),
            self._slice(png),
        )

    def _slice(self, pointer: np.ndarray) -> np.ndarray:
        offset, size = int(pointer[0]), int(pointer[1])
        return self._bytes[offset : offset + size]


class _MappedReader(Reader):
    """FFCV's reader with the metadata mapped instead of read: 72 MB less a shard of 10^6 rows."""

    def read_metadata(self) -> None:
        """Maps the rows' metadata as a plain array (numba types a memmap apart)."""
        offset = HeaderType.itemsize + self.field_descriptors.nbytes
        mapped = np.memmap(self._fname, self.metadata_type, "r", offset, (int(self.num_samples),))
        self.metadata = np.asarray(mapped)

    def read_allocation_table(self) -> None:
        """Reads nothing: our fields carry their sizes, and `shard.check_shard` has checked the table."""


class Pipeline:
    """FFCV's compiled decoders of some fields; any thread may run it, on any shard of this schema."""

    def __init__(self, fields: tuple[str, ...]) -> None:
        handlers = {name: field() for name, field in ROW.items()}
        specs = {name: PipelineSpec(name, decoder=handlers[name].get_decoder_class()()) for name in fields}
        index = {name: number for number, name in enumerate(ROW)}
        metadata = np.zeros(0, get_metadata_type(list(handlers.values())))
        graph = Graph(specs, handlers, index, metadata, memory_read=None)
        memory, code = graph.collect_requirements()
        self._memory: dict[int, AllocationQuery] = memory["operation"]
        self._nothing = {f"shared_memory_{node}": None for node in memory["shared"]}
        ((self._stage, self._nodes),), outputs = graph.codegen_all(code)
        self._names = dict(zip(outputs, fields, strict=True))

    def run(self, rows: np.ndarray, metadata: np.ndarray) -> dict[str, np.ndarray]:
        """Returns field -> pointers int64 [B, 4 or 2] of local rows int64 [B], in memory of their own."""
        arguments: dict[str, Any] = {
            f"memory_{node}": np.empty((len(rows), *query.shape), query.dtype)
            for node, query in self._memory.items()
        }
        results = self._stage(
            batch_indices=rows, metadata=metadata, storage_state=(), **arguments, **self._nothing
        )
        return {self._names[node]: result for node, result in zip(self._nodes, results, strict=True)}


@cache
def compiled(fields: tuple[str, ...]) -> Pipeline:
    """Returns the pipeline of these fields; compiling takes seconds, so a process does it once."""
    return Pipeline(fields)


def _fields(annotations: frozenset[str]) -> tuple[str, ...]:
    wanted: Sequence[str] = ["image"]
    if "boxes" in annotations:
        wanted = [*wanted, "boxes", "box_labels"]
    if "segmentation" in annotations:
        wanted = [*wanted, "map"]
    return tuple(wanted)
