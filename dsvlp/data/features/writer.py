"""Writes the region features of a data set, shard by shard, restartable, all or nothing.

Until the last row everything stands in `.X.features.partial`. A shard that is finished stays through a kill
or a full disk: the same command goes on with the first row of the first shard that is not.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from dsvlp.data import manifest as manifests
from dsvlp.data.features import manifest as feature_manifest
from dsvlp.data.features.checked import RowMaker
from dsvlp.data.features.layout import ROW, row_bytes
from dsvlp.data.features.manifest import SUFFIX, FeatureManifest, Kind, shard_name
from dsvlp.data.features.rows import RegionRows, RegionSource
from dsvlp.data.manifest import EXAMPLES, FileRecord, Tally
from dsvlp.data.shard import ShardWriter, page_size
from dsvlp.data.workplace import Workplace
from dsvlp.errors import DataError

if TYPE_CHECKING:
    from dsvlp.data.dataset import Dataset


@dataclass(frozen=True)
class Options:
    """How features are written.

    Attributes:
        objects: N, of every image: the most confident of more, padding beside fewer.
        dtype: float16, or int8 with a scale for each object at half the size.
        rows_per_shard: most rows of a file; what an interruption loses.
        max_missing: share of images that the source may have nothing of.
        force: replace complete features of the same name.
        progress: show a bar.
    """

    objects: int = 100
    dtype: Kind = "float16"
    rows_per_shard: int = 4096
    max_missing: float = 0.0
    force: bool = False
    progress: bool = True


def write(source: RegionSource, dataset: Dataset, out: Path, options: Options = Options()) -> FeatureManifest:
    """Writes the features `out` of a data set and returns their manifest.

    Raises:
        DataError: a value cannot be stored, too many images are missing, `out` exists, an interrupted
            writing had other arguments, or the disk is full.
    """
    out = Path(out)
    check_missing(source, dataset, options.max_missing)
    try:
        with (
            FeatureWriter(source, dataset, out, options) as writer,
            tqdm(total=dataset.images, unit=" images", disable=not options.progress) as bar,
        ):
            bar.update(writer.next_row)
            if writer.next_row < dataset.images:
                for rows in source.rows(writer.next_row):
                    writer.write(writer.next_row, rows)
                    bar.update(len(rows.counts))
            return writer.finish()
    except OSError as error:
        raise DataError(
            f"writing {out} failed: {error.strerror or error}",
            fix="Mend it and run the same command again: it goes on where it stopped",
        ) from error


def check_missing(source: RegionSource, dataset: Dataset, limit: float) -> None:
    """Raises `DataError` where a source has nothing of more than a share of the images."""
    missing = source.missing
    if len(missing) > limit * dataset.images:
        raise DataError(
            f"{source.name} has nothing of {len(missing)} of {dataset.images} images of {dataset.path}: "
            f"{', '.join(missing[:EXAMPLES])}" + (" ..." if len(missing) > EXAMPLES else ""),
            f"at most a share of {limit:g}",
            "Check that it belongs to this data set, or allow more with --max-missing: these have no objects",
        )


class FeatureWriter:
    """A context manager that takes the regions of a data set's images in their order.

    Args:
        source: describes the regions; its rows are not read here.
        dataset: whose images they are.
        out: the folder, X.features.
        options: how they are written.

    Raises:
        DataError: `out` exists, another process writes it, or an interrupted writing had other arguments.
    """

    def __init__(self, source: RegionSource, dataset: Dataset, out: Path, options: Options) -> None:
        self._source, self._dataset, self._options = source, dataset, options
        self._digest = dataset.manifest.to_json()["digest"]
        self._place = Workplace(out, self._arguments(), options.force, SUFFIX)
        self._maker = RowMaker(dataset, options.objects, source.width, options.dtype, source.table)
        self._page = page_size(4 * sum(row_bytes(options.objects, source.width, options.dtype)))
        size = options.rows_per_shard
        self._shard_rows = [min(size, dataset.images - first) for first in range(0, dataset.images, size)]
        self._finished: list[_Finished] = []
        self._shard: ShardWriter | None = None
        self._adjusted = Tally()

    def __enter__(self) -> FeatureWriter:
        self._place.__enter__()
        while len(self._finished) < len(self._shard_rows):
            finished = _Finished.read(self._place, len(self._finished))
            if finished is None:
                break
            self._finished.append(finished)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shard is not None:
            self._shard.close()
        self._place.__exit__(kind, error, trace)

    @property
    def next_row(self) -> int:
        """The row that `write` expects next; after an interruption the first of an unfinished shard."""
        finished = sum(self._shard_rows[: len(self._finished)])
        return finished + (self._shard.rows if self._shard is not None else 0)

    def write(self, start: int, rows: RegionRows) -> None:
        """Stores the regions of the images from row `start` on, which is `next_row`.

        Raises:
            DataError: names the image and the value that cannot be stored.
        """
        assert start == self.next_row, f"row {start} in place of {self.next_row}"
        begin, end = 0, len(rows.counts)
        if start + end > self._dataset.images:
            raise DataError(
                f"{self._source.name} gives regions of {start + end} images",
                f"{self._dataset.images}, as {self._dataset.path} has",
                "Make them from this data set",
            )
        while begin < end:
            shard, size = self._open_shard()
            some = min(end - begin, size - shard.rows)
            for values in self._maker.make(self.next_row, rows.part(begin, begin + some), self._adjusted):
                shard.append(values)
            begin += some
            if shard.rows == size:
                self._finish_shard(shard)

    def finish(self) -> FeatureManifest:
        """Gives the folder its name, when every image's regions are written, and returns the manifest.

        Raises:
            DataError: the source ended too early.
        """
        if self.next_row < self._dataset.images:
            raise DataError(
                f"{self._source.name} gives regions of {self.next_row} images",
                f"{self._dataset.images}, as {self._dataset.path} has",
                "Make them from this data set",
            )
        if not self._place.complete:
            manifests.save(self._place.folder, self._manifest().to_json())
        self._place.publish()
        return feature_manifest.load(self._place.out)

    def _open_shard(self) -> tuple[ShardWriter, int]:
        """Returns the file that the next row goes to, and how many rows it will have."""
        number = len(self._finished)
        if self._shard is None:
            path = self._place.folder / shard_name(number)
            self._shard = ShardWriter(path, self._shard_rows[number], self._page, ROW)
            self._adjusted = Tally()
        return self._shard, self._shard_rows[number]

    def _finish_shard(self, shard: ShardWriter) -> None:
        shard.finish()
        self._shard = None
        self._finished.append(_Finished.make(self._place, len(self._finished), self._adjusted))

    def _arguments(self) -> dict[str, Any]:
        source, options = self._source, self._options
        return {
            "dataset": self._digest,
            "source": source.name,
            "detector": source.detector,
            "backbone": source.backbone,
            "objects": options.objects,
            "width": source.width,
            "dtype": options.dtype,
            "table": source.table and source.table.to_json(),
            "rows_per_shard": options.rows_per_shard,
            **source.arguments,
        }

    def _manifest(self) -> FeatureManifest:
        adjusted = Tally()
        for finished in self._finished:
            adjusted.update(finished.adjusted)
        return FeatureManifest(
            dataset=self._dataset.path.name,
            dataset_digest=self._digest,
            source=self._source.name,
            detector=self._source.detector,
            backbone=self._source.backbone,
            images=self._dataset.images,
            objects=self._options.objects,
            width=self._source.width,
            dtype=self._options.dtype,
            table=self._source.table,
            shard_rows=tuple(self._shard_rows),
            adjusted=adjusted,
            files={shard_name(number): done.record for number, done in enumerate(self._finished)},
        )


@dataclass(frozen=True)
class _Finished:
    """What is known of a finished shard; it stands in the folder of the work until all are."""

    record: FileRecord
    adjusted: Tally

    @classmethod
    def make(cls, place: Workplace, number: int, adjusted: Tally) -> _Finished:
        """Hashes a shard that has just been written, and notes it when it is on the disk."""
        path = place.folder / shard_name(number)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        finished = cls(manifests.record(path), adjusted)
        note = place.work / f"{path.stem}.json"
        partial = note.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as out:
            json.dump(asdict(finished), out)
            out.flush()
            os.fsync(out.fileno())
        partial.rename(note)
        return finished

    @classmethod
    def read(cls, place: Workplace, number: int) -> _Finished | None:
        """Returns what an earlier writing noted of a shard; None where it has to be written."""
        path = place.folder / shard_name(number)
        try:
            told = json.loads((place.work / f"{path.stem}.json").read_bytes())
            record = FileRecord(told["record"]["bytes"], tuple(told["record"]["blocks"]))
            manifests.check_size(path, record)
            return cls(record, Tally(**told["adjusted"]))
        except (OSError, ValueError, KeyError, TypeError, DataError):
            return None
