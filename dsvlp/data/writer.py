"""Writes a `.beton` data set from a reader's samples: several processes, restartable, all or nothing.

1. The samples are read; their images go in chunks to worker processes, which validate and encode
   them into parts (`parts.py`). 2. The parts become FFCV shards, the samples tables. 3. Hashes and
   manifest are written and the folder gets its name. Until then everything stands in
   `.X.beton.partial`: after an interruption, a kill or a full disk, the same command goes on with
   the parts that are finished. What is written does not depend on the number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dsvlp.data import manifest as manifests
from dsvlp.data import parts
from dsvlp.data.answers import AnswerRule, load_table
from dsvlp.data.collect import Collector
from dsvlp.data.dataset import shard_name
from dsvlp.data.fields import ROW, StoredImage
from dsvlp.data.jpeg import MAX_PIXELS
from dsvlp.data.manifest import Manifest, Tally
from dsvlp.data.parts import Rules
from dsvlp.data.pool import make_parts
from dsvlp.data.readers.base import Reader
from dsvlp.data.shard import Row, page_size, write_shard
from dsvlp.data.tables import write_strings
from dsvlp.data.workplace import Workplace
from dsvlp.errors import DataError
from dsvlp.types import ImageSource

LOST_IMAGE = "text of an image left out"


@dataclass(frozen=True)
class Options:
    """How a data set is written.

    Attributes:
        processes: workers that validate and encode images; 1: in this process.
        rows_per_shard: most rows of an FFCV file.
        max_missing: share of images that may be absent or unreadable.
        max_pixels: most pixels of an image, judged from its header.
        force: replace a complete data set of the same name.
        progress: show a bar.
        answers: a file with the answer table, or a data set whose table it shares; None: the source's own,
            or one made of its answers.
        answer_count: questions that must give an answer for it to stand in a made table; VQA's usual 9.
    """

    processes: int = 2
    rows_per_shard: int = 1_000_000
    max_missing: float = 0.01
    max_pixels: int = MAX_PIXELS
    force: bool = False
    progress: bool = True
    answers: Path | None = None
    answer_count: int = 9


def write(reader: Reader, out: Path, options: Options = Options()) -> Manifest:
    """Writes the data set `out` and returns its manifest.

    Raises:
        DataError: the input is wrong, too many images are missing, `out` exists, an interrupted
            writing had other arguments, or the disk is full.
    """
    given = load_table(options.answers) if options.answers is not None else reader.tables.answers
    rule = AnswerRule(given, options.answer_count)
    arguments = {
        "reader": reader.name,
        "source": reader.source,
        **reader.arguments,
        "rows_per_shard": options.rows_per_shard,
        "max_pixels": options.max_pixels,
        "answers": given.name if given is not None else f"of {options.answer_count} questions",
    }
    try:
        with Workplace(Path(out), arguments, options.force) as place:
            if not place.complete:
                _write(reader, place, options, rule)
            place.publish()
            return manifests.load(Path(out))
    except OSError as error:
        raise DataError(
            f"writing {out} failed: {error.strerror or error}",
            fix="Mend it and run the same command again: it goes on where it stopped",
        ) from error


def _write(reader: Reader, place: Workplace, options: Options, rule: AnswerRule) -> None:
    collector = Collector(place.work, rule)
    rules = Rules(options.max_pixels, reader.tables.segmentation, reader.tables.boxes)
    finished, missing = [], Tally()
    with tqdm(total=reader.images, unit=" images", disable=not options.progress) as bar:
        for part in make_parts(_chunks(reader, collector), place.work, rules, options.processes):
            for entry in parts.entries(part):
                bar.update()
                if entry.problem:
                    missing.add(entry.problem, entry.detail)
            _check_missing(missing, max(bar.n, reader.images or 10_000), options.max_missing)
            finished.append(part)
    _check_missing(missing, collector.images, options.max_missing)
    finished.sort()  # they finish in any order
    layout = _lay_out(finished, collector.images)
    if not layout.ids:
        raise DataError(
            f"{reader.source} gives no image that can be stored: "
            + "; ".join(missing.lines() or ["it has no sample"]),
            "at least one",
            "Check the paths",
        )
    samples, tables = collector.write_tables(place.folder, layout.row_of, LOST_IMAGE)
    if options.answers is not None and "answers" not in tables:
        raise DataError(
            f"{reader.source} has no question with an answer", "at least one, for --answers", "Leave it out"
        )
    write_strings(place.folder, "ids", layout.ids)
    np.save(place.folder / "hashes.npy", np.frombuffer(b"".join(layout.hashes), "u1").reshape(-1, 32))
    shard_rows = _write_shards(
        finished, place.folder, len(layout.ids), layout.largest, options.rows_per_shard
    )
    for tally in (reader.skipped, collector.skipped):
        layout.skipped.update(tally)
    Manifest(
        reader=reader.name,
        source=reader.source,
        images=len(layout.ids),
        samples=samples,
        texts=samples,
        shard_rows=shard_rows,
        row_fields=tuple(ROW),
        maps=layout.maps,
        boxes_images=layout.boxed,
        tables=tuple(tables),
        segmentation=reader.tables.segmentation if layout.maps else None,
        boxes=reader.tables.boxes if layout.boxed else None,
        normalised=layout.normalised,
        skipped=layout.skipped,
        outside=collector.outside,
        files=_records(place.folder),
    ).save(place.folder)


def _records(folder: Path) -> dict[str, manifests.FileRecord]:
    """Returns the record of every file that belongs to the data set, after it reached the disk."""
    records = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith(manifests.NAME):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            records[path.name] = manifests.record(path)
    return records


def _chunks(reader: Reader, collector: Collector) -> Iterator[list[ImageSource]]:
    """Yields the images in chunks as the samples bring them; chunks grow from 16 to 1024 images.

    A small data set is still spread over the processes, and a large one makes few files.
    """
    chunk: list[ImageSource] = []
    number = 0
    for sample in reader.samples():
        for image in collector.add(sample):
            chunk.append(image)
            if len(chunk) == min(1024, 16 << (number // 8)):
                yield chunk
                chunk, number = [], number + 1
    if chunk:
        yield chunk


def _check_missing(missing: Tally, of: int, limit: float) -> None:
    count = sum(missing.counts.values())
    if count > limit * of:
        raise DataError(
            f"{count} of {of} images cannot be stored: " + "; ".join(missing.lines()),
            f"at most a share of {limit}",
            "Check the images' folder, or allow more with --max-missing",
        )


@dataclass
class _Layout:
    """Which image stands in which row, and what the manifest says of all.

    Attributes:
        row_of: int64 [images seen], -1 where an image is left out.
        ids, hashes: of the rows.
        largest: bytes of the largest row.
        maps, boxed: rows with a map, with boxes.
    """

    row_of: np.ndarray
    ids: list[str] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    largest: int = 0
    maps: int = 0
    boxed: int = 0
    normalised: Tally = field(default_factory=Tally)
    skipped: Tally = field(default_factory=Tally)


def _lay_out(finished: list[Path], images: int) -> _Layout:
    layout = _Layout(np.full(images, -1, np.int64))
    for number, entry in enumerate(entry for part in finished for entry in parts.entries(part)):
        if entry.problem:
            layout.skipped.add(entry.problem, entry.detail)
            continue
        layout.row_of[number] = len(layout.ids)
        layout.ids.append(entry.id)
        layout.hashes.append(bytes.fromhex(entry.sha256))
        layout.largest = max(layout.largest, sum(size for _, size in entry.spans))
        layout.boxed += entry.spans[1][1] > 0
        layout.maps += entry.spans[3][1] > 0
        for change in entry.changes:
            layout.normalised.add(change, entry.id)
        for reason, detail in entry.losses:
            layout.skipped.add(reason, detail)
    return layout


def _write_shards(
    finished: list[Path], folder: Path, rows: int, largest: int, rows_per_shard: int
) -> tuple[int, ...]:
    """Writes the FFCV files and returns the rows of each."""
    for stale in folder.glob("rows-*.beton"):  # of a writing that was interrupted here
        stale.unlink()
    counts = [min(rows_per_shard, rows - first) for first in range(0, rows, rows_per_shard)]
    stream = _rows(finished)
    for number, count in enumerate(counts):
        write_shard(folder / shard_name(number), islice(stream, count), count, page_size(largest))
    return tuple(counts)


def _rows(finished: list[Path]) -> Iterator[Row]:
    for part in finished:
        blob = (
            np.memmap(part.with_suffix(".bin"), np.uint8, "r")
            if part.with_suffix(".bin").stat().st_size
            else None
        )
        for entry in parts.entries(part):
            if entry.problem or blob is None:
                continue
            image, *rest = (blob[first : first + size].tobytes() for first, size in entry.spans)
            yield Row(StoredImage(image, entry.height, entry.width), *rest)
