"""Region features on disk, opened for reading: a row is copied once, from the mapped file to its place.

FFCV's compiled decoders are not used: every row has the same size, so its pointer is all that is needed, and
NumPy's copy of 400 KB is as fast as memory. Nothing is read ahead or held: the files are mapped, the last
used ones. A shard has 4,096 rows, not an image shard's 10^6: `data.open_shards`, the window of a run's
order, may span a thousand of them.

Legend: I images, N objects of an image, F feature width.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from dsvlp.data import manifest as manifests
from dsvlp.data.features import manifest as feature_manifest
from dsvlp.data.features.layout import OBJECT, ROW, STORED, row_bytes
from dsvlp.data.features.manifest import FeatureManifest, shard_name
from dsvlp.data.features.rows import Regions
from dsvlp.data.shard import check_shard, metadata_within
from dsvlp.errors import DataError
from dsvlp.types import LabelTable

if TYPE_CHECKING:
    from dsvlp.data.dataset import Dataset


OPEN_SHARDS = 256
"""Most shards that stay mapped, a file handle each: those of a million images."""

Identity = tuple[int, int, int]  # a file's inode, bytes, time of the last change


class Features:
    """The region features of a data set; threads may share it. Use `Features.open`.

    Args:
        path: the folder.
        manifest: what stands in it.
        open_shards: most shards that stay mapped, the last used ones.

    Attributes:
        path: the folder.
        manifest: what stands in it.
        objects: N, of every row.
        width: F.
    """

    def __init__(self, path: Path, manifest: FeatureManifest, open_shards: int = OPEN_SHARDS) -> None:
        self.path, self.manifest = path, manifest
        self.objects, self.width = manifest.objects, manifest.width
        seen = [_check_shard(path, manifest, number) for number in range(len(manifest.shard_rows))]
        self._shard = lru_cache(open_shards)(
            partial(_Shard.open, path, manifest, seen)
        )  # threads may share it
        self._first_row = np.cumsum([0, *manifest.shard_rows[:-1]])
        self._stored = STORED[manifest.dtype]

    @classmethod
    def open(cls, path: Path | str, dataset: Dataset, verify: Literal["quick", "full"] = "quick") -> Features:
        """Returns the features at `path` after checking that they are the data set's.

        "quick" checks the manifest's own hash, every file's size, headers, pointers and allocation tables;
        "full" also the SHA-256 of every block.

        Raises:
            DataError: names the absent or damaged file, and the block; or both data sets.
        """
        path = Path(path)
        manifest = feature_manifest.load(path)
        manifest.check_belongs(path, dataset.path, dataset.manifest.to_json()["digest"])
        for name, record in manifest.files.items():
            check = manifests.check_blocks if verify == "full" else manifests.check_size
            check(path / name, record)
        return cls(path, manifest)

    @property
    def table(self) -> LabelTable | None:
        """The classes' label table, None where objects have no class."""
        return self.manifest.table

    def read(self, rows: np.ndarray) -> Regions:
        """Returns the regions of rows int64 [I], in this order."""
        features = np.empty((len(rows), self.objects, self.width), np.float16)
        about = np.empty((len(rows), self.objects), OBJECT)
        for row, out, told in zip(rows.tolist(), features, about, strict=True):
            self.read_into(row, out, told)
        return Regions(
            features,
            np.ascontiguousarray(about["box"]),
            about["label"].astype(np.int64),
            np.ascontiguousarray(about["confidence"]),
            about["is_object"] != 0,
        )

    def about(self, rows: np.ndarray) -> np.ndarray:
        """Returns `layout.OBJECT` [I, N] of rows int64 [I]; no byte of their features is touched."""
        out = np.empty((len(rows), self.objects), OBJECT)
        for row, told in zip(rows.tolist(), out, strict=True):
            told[:] = self._find(row)[1].view(OBJECT)
        return out

    def read_into(self, row: int, features: np.ndarray, about: np.ndarray) -> None:
        """Copies a row.

        Args:
            row: number in the data set.
            features: float16 [N, F], filled; its lines may lie apart.
            about: `layout.OBJECT` [N], filled.
        """
        stored, objects = self._find(row)
        about[:] = objects.view(OBJECT)
        lines = stored.view(self._stored).reshape(self.objects, self.width)
        if self._stored.itemsize == 2:
            features[:] = lines
        else:
            values = np.multiply(lines, about["scale"][:, None])  # float32
            torch.from_numpy(features).copy_(torch.from_numpy(values))  # NumPy rounds ten times slower

    def _find(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        number = int(self._first_row.searchsorted(row, "right")) - 1
        return self._shard(number).row(row - int(self._first_row[number]))


@dataclass(frozen=True)
class _Shard:
    """A mapped file: its bytes, and where each row's features and objects begin."""

    data: np.ndarray
    features: np.ndarray
    objects: np.ndarray
    sizes: tuple[int, int]

    @classmethod
    def open(cls, path: Path, manifest: FeatureManifest, seen: list[Identity], number: int) -> _Shard:
        """Maps a file that has been checked, and that nobody has replaced since."""
        file = path / shard_name(number)
        try:
            with file.open("rb") as handle:
                if _identity(handle.fileno()) != seen[number]:
                    raise ValueError("it has been replaced or changed")
                data = np.asarray(np.memmap(handle, np.uint8, "r"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file} cannot be opened: {error}",
                "the file that was there when this run began",
                "Resume the run with the features that it began with; `dsvlp data check` finds damage",
            ) from error
        features, objects = _columns(metadata_within(data, manifest.shard_rows[number], ROW))
        return cls(data, features["ptr"], objects["ptr"], _sizes(manifest))

    def row(self, local: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the bytes of a row's features and of its objects, views of the file."""
        first, second = int(self.features[local]), int(self.objects[local])
        return self.data[first : first + self.sizes[0]], self.data[second : second + self.sizes[1]]


def _identity(file: Path | int) -> Identity:
    told = os.stat(file)
    return told.st_ino, told.st_size, told.st_mtime_ns


def _check_shard(path: Path, manifest: FeatureManifest, number: int) -> Identity:
    """Returns which file was checked.

    Raises:
        DataError: it is damaged, or its rows are not of the manifest's size.
    """
    file = path / shard_name(number)
    columns = _columns(check_shard(file, manifest.shard_rows[number], ROW))
    for name, column, size in zip(ROW, columns, _sizes(manifest), strict=True):
        wrong = np.flatnonzero(column["size"] != size)
        if len(wrong):
            raise DataError(
                f"{file}: row {int(wrong[0])} has {int(column['size'][wrong[0]])} bytes of {name}",
                f"{size}, as its manifest says",
                "Copy the features again",
            )
    return _identity(file)


def _columns(metadata: np.ndarray) -> list[np.ndarray]:
    return [metadata[name] for name in metadata.dtype.names or ()]


def _sizes(manifest: FeatureManifest) -> tuple[int, int]:
    return row_bytes(manifest.objects, manifest.width, manifest.dtype)
