"""One FFCV file of rows: written in this process, and checked before it is read.

FFCV's `DatasetWriter` starts workers and waits for ever when one dies. The rows that come here are
already validated and encoded, so that writing is copying: one process is as fast as the disk, its
errors propagate, and the pages stand in the same order every time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dsvlp.data.beton import (
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    MIN_PAGE_SIZE,
    DatasetWriter,
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
    """Writes `count` rows to a new FFCV file.

    Args:
        path: the file; overwritten.
        rows: exactly `count` rows, at least one.
        count: number of rows.
        page: FFCV's page size in bytes, at least the bytes of the largest row.
    """
    fields = {name: field() for name, field in ROW.items()}
    writer = DatasetWriter(str(path), fields, page_size=page, num_workers=1)
    writer.num_samples = count
    writer.prepare()
    writer.metadata_sm.close()
    writer.metadata_sm.unlink()
    # /dev/shm is often 64 MB in a container; writing past its end kills the process without a word.
    memory = bytearray(count * writer.metadata_type.itemsize)
    writer.metadata_sm = SimpleNamespace(buf=memory)
    metadata = np.frombuffer(memory, writer.metadata_type)
    allocator = MemoryAllocator(str(path), writer.data_region_start, page)
    with allocator:
        for number, row in enumerate(rows):
            values = (row.image, row.boxes, row.box_labels, row.map)
            handle_sample(values, number, writer.metadata_type.names, metadata, allocator, fields)
    writer.finalize(allocator.allocations)
    check_shard(path, count)  # FFCV does not look whether a nearly full disk took the whole page


def check_shard(path: Path, rows: int) -> np.ndarray:
    """Checks an FFCV file's header, metadata and allocation table and returns the rows' metadata.

    FFCV itself accepts a cut allocation table and then reads wrong samples.

    Raises:
        DataError: names the file and what does not fit.
    """
    try:
        size = path.stat().st_size
        header = np.fromfile(path, HeaderType, 1)[0]
        descriptors = np.fromfile(path, FieldDescType, len(ROW), offset=HeaderType.itemsize)
    except (OSError, IndexError) as error:
        raise DataError(f"{path} has no FFCV header: {error}", fix="Write the data set again") from error
    start = HeaderType.itemsize + len(ROW) * FieldDescType.itemsize
    types = get_metadata_type([field() for field in ROW.values()])
    data_start, table = start + rows * types.itemsize, int(header["alloc_table_ptr"])
    names = [entry.tobytes().rstrip(b"\0").decode("latin1") for entry in descriptors["name"]]
    problem = _header_problem(header, names, rows, data_start, table, size)
    if problem:
        raise DataError(f"{path} is damaged: {problem}", fix="Copy or write the data set again")
    metadata = np.memmap(path, types, "r", offset=start, shape=(rows,))
    allocations = np.memmap(path, ALLOC_TABLE_TYPE, "r", offset=table)
    problem = _pointer_problem(metadata, allocations, data_start, table)
    if problem:
        raise DataError(f"{path} is damaged: {problem}", fix="Copy or write the data set again")
    return metadata


def _header_problem(
    header: np.void, names: list[str], rows: int, data_start: int, table: int, size: int
) -> str:
    if header["version"] != CURRENT_VERSION or header["num_fields"] != len(ROW):
        return f"version {header['version']} with {header['num_fields']} fields"
    if names != list(ROW):
        return f"its fields are {names}, expected {list(ROW)}"
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
