"""One FFCV file of rows: written in this process, and checked before it is read.

FFCV's `DatasetWriter` starts workers and waits for ever when one dies. The rows that come here are
already validated and encoded, so that writing is copying: one process is as fast as the disk, its
errors propagate, and the pages stand in the same order every time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from dsvlp.data.beton import (
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    MIN_PAGE_SIZE,
    DatasetWriter,
    Field,
    FieldDescType,
    HeaderType,
    MemoryAllocator,
    get_metadata_type,
    handle_sample,
)
from dsvlp.data.fields import ROW, StoredImage
from dsvlp.errors import DataError


@dataclass(frozen=True)
class Row:
    """The values of one row, in the order of `fields.ROW`."""

    image: StoredImage
    boxes: np.ndarray | bytes = b""
    box_labels: np.ndarray | bytes = b""
    map: bytes = b""


def page_size(largest_row: int) -> int:
    """Returns a page that holds the largest row four times, so that pages are filled well, up to 1 GiB."""
    size = MIN_PAGE_SIZE
    while size < min(4 * largest_row, 1 << 30):
        size *= 2
    return size


def write_shard(path: Path, rows: Iterable[Row], count: int, page: int) -> None:
    """Writes `count` rows of pictures to a new FFCV file.

    Args:
        path: the file; overwritten.
        rows: exactly `count` rows, at least one.
        count: number of rows.
        page: FFCV's page size in bytes, at least the bytes of the largest row.
    """
    shard = ShardWriter(path, count, page, ROW)
    try:
        for row in rows:
            shard.append((row.image, row.boxes, row.box_labels, row.map))
        shard.finish()
    finally:
        shard.close()


class ShardWriter:
    """Writes a new FFCV file row by row.

    Args:
        path: the file; overwritten.
        count: rows that will be appended, at least one.
        page: FFCV's page size in bytes, at least the bytes of the largest row.
        fields: a row's fields in order.

    Attributes:
        rows: rows appended so far.
    """

    def __init__(self, path: Path, count: int, page: int, fields: Mapping[str, type[Field]]) -> None:
        self._path, self._count, self._schema = path, count, fields
        self._fields = {name: field() for name, field in fields.items()}
        self._writer = writer = DatasetWriter(str(path), self._fields, page_size=page, num_workers=1)
        writer.num_samples = count
        writer.prepare()
        writer.metadata_sm.close()
        writer.metadata_sm.unlink()
        # /dev/shm is often 64 MB in a container; writing past its end kills the process without a word.
        memory = bytearray(count * writer.metadata_type.itemsize)
        writer.metadata_sm = SimpleNamespace(buf=memory)
        self._metadata = np.frombuffer(memory, writer.metadata_type)
        self._allocator = MemoryAllocator(str(path), writer.data_region_start, page)
        self._allocator.__enter__()
        self.rows = 0

    def append(self, values: Sequence[Any]) -> None:
        """Writes a row's values, in the order of the fields."""
        names = self._writer.metadata_type.names
        handle_sample(values, self.rows, names, self._metadata, self._allocator, self._fields)
        self.rows += 1

    def finish(self) -> None:
        """Completes the file and checks it.

        Raises:
            DataError: it is damaged: FFCV does not look whether a nearly full disk took the whole page.
        """
        assert self.rows == self._count, f"{self.rows} rows of {self._count}"
        self._allocator.__exit__(None, None, None)
        self._writer.finalize(self._allocator.allocations)
        check_shard(self._path, self._count, self._schema)

    def close(self) -> None:
        """Lets go of the file; one that was not finished is worthless."""
        self._allocator.fp.close()


def check_shard(path: Path, rows: int, fields: Mapping[str, type[Field]] = ROW) -> np.ndarray:
    """Checks an FFCV file's header, metadata and allocation table and returns the rows' metadata.

    FFCV itself accepts a cut allocation table and then reads wrong samples.

    Raises:
        DataError: names the file and what does not fit.
    """
    try:
        size = path.stat().st_size
        header = np.fromfile(path, HeaderType, 1)[0]
        descriptors = np.fromfile(path, FieldDescType, len(fields), offset=HeaderType.itemsize)
    except (OSError, IndexError) as error:
        raise DataError(f"{path} has no FFCV header: {error}", fix="Write the data set again") from error
    data_start = _metadata_start(fields) + rows * _metadata_type(fields).itemsize
    table = int(header["alloc_table_ptr"])
    names = [entry.tobytes().rstrip(b"\0").decode("latin1") for entry in descriptors["name"]]
    problem = _header_problem(header, names, list(fields), rows, data_start, table, size)
    if problem:
        raise DataError(f"{path} is damaged: {problem}", fix="Copy or write the data set again")
    metadata = row_metadata(path, rows, fields)
    allocations = np.memmap(path, ALLOC_TABLE_TYPE, "r", offset=table)
    problem = _pointer_problem(metadata, allocations, data_start, table)
    if problem:
        raise DataError(f"{path} is damaged: {problem}", fix="Copy or write the data set again")
    return metadata


def row_metadata(path: Path, rows: int, fields: Mapping[str, type[Field]] = ROW) -> np.ndarray:
    """Returns the mapped metadata of an FFCV file's rows, whose header has been checked."""
    return np.memmap(path, _metadata_type(fields), "r", offset=_metadata_start(fields), shape=(rows,))


def metadata_within(data: np.ndarray, rows: int, fields: Mapping[str, type[Field]] = ROW) -> np.ndarray:
    """Returns the same as a view of the whole file's mapped bytes."""
    start, kind = _metadata_start(fields), _metadata_type(fields)
    view: np.ndarray = data[start : start + rows * kind.itemsize].view(kind)
    return view


def _metadata_type(fields: Mapping[str, type[Field]]) -> np.dtype:
    return get_metadata_type([field() for field in fields.values()])


def _metadata_start(fields: Mapping[str, type[Field]]) -> int:
    return HeaderType.itemsize + len(fields) * FieldDescType.itemsize


def _header_problem(
    header: np.void, names: list[str], fields: list[str], rows: int, data_start: int, table: int, size: int
) -> str:
    if header["version"] != CURRENT_VERSION or header["num_fields"] != len(fields):
        return f"version {header['version']} with {header['num_fields']} fields"
    if names != fields:
        return f"its fields are {names}, expected {fields}"
    if header["num_samples"] != rows:
        return f"its header says {header['num_samples']} rows, the manifest {rows}"
    if not data_start <= table < size:
        return f"its allocation table stands at byte {table} of {size}"
    if (size - table) % ALLOC_TABLE_TYPE.itemsize:
        return f"its allocation table of {size - table} bytes is cut"
    return ""


def _pointer_problem(metadata: np.ndarray, allocations: np.ndarray, data_start: int, table: int) -> str:
    """Returns what is wrong with the allocations or with the metadata's pointers, "" where nothing is."""
    fields = [metadata[name] for name in metadata.dtype.names or ()]
    values = sum(int((field["size"] > 0).sum()) for field in fields)
    if len(allocations) != values:
        return f"its allocation table has {len(allocations)} entries, its rows {values} values"
    pointers = np.concatenate([field["ptr"][field["size"] > 0] for field in fields])
    sizes = np.concatenate([field["size"][field["size"] > 0] for field in fields])
    for where, ptr, length in (("row", pointers, sizes), ("entry", allocations["ptr"], allocations["size"])):
        # Unsigned: `table - ptr` is only taken where ptr is below it.
        outside = (ptr < data_start) | (ptr >= table) | (length > table - np.minimum(ptr, table))
        if outside.any():
            return f"a {where}'s pointer {int(ptr[outside][0])} lies outside the data"
    known, wanted = np.argsort(allocations["ptr"]), np.argsort(pointers)
    same = (allocations["ptr"][known] == pointers[wanted]) & (allocations["size"][known] == sizes[wanted])
    return "" if same.all() else "its rows and its allocation table disagree"
