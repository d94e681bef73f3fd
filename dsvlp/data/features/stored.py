"""Region features on disk, opened for reading: a row is copied once, from the mapped file to its place.

FFCV's compiled decoders are not used: every row has the same size, so its pointer is all that is needed, and
NumPy's copy of 400 KB is as fast as memory. Nothing is read ahead or held: the files are mapped.

Legend: I images, N objects of an image, F feature width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from dsvlp.data import manifest as manifests
from dsvlp.data.features import manifest as feature_manifest
from dsvlp.data.features.layout import OBJECT, ROW, STORED, row_bytes
from dsvlp.data.features.manifest import FeatureManifest, shard_name
from dsvlp.data.features.rows import Regions
from dsvlp.data.shard import check_shard
from dsvlp.errors import DataError
from dsvlp.types import LabelTable

if TYPE_CHECKING:
    from dsvlp.data.dataset import Dataset


class Features:
    """The region features of a data set; threads may share it. Use `Features.open`.

    Attributes:
        path: the folder.
        manifest: what stands in it.
        objects: N, of every row.
        width: F.
    """

    def __init__(self, path: Path, manifest: FeatureManifest) -> None:
        self.path, self.manifest = path, manifest
        self.objects, self.width = manifest.objects, manifest.width
        self._shards = [
            _Shard.open(path / shard_name(number), rows, manifest)
            for number, rows in enumerate(manifest.shard_rows)
        ]
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
        return self._shards[number].row(row - int(self._first_row[number]))


@dataclass(frozen=True)
class _Shard:
    """A mapped file: its bytes, and where each row's features and objects begin."""

    data: np.ndarray
    features: np.ndarray
    objects: np.ndarray
    sizes: tuple[int, int]

    @classmethod
    def open(cls, path: Path, rows: int, manifest: FeatureManifest) -> _Shard:
        metadata = check_shard(path, rows, ROW)
        sizes = row_bytes(manifest.objects, manifest.width, manifest.dtype)
        columns = [metadata[name] for name in metadata.dtype.names or ()]
        for name, column, size in zip(ROW, columns, sizes, strict=True):
            wrong = np.flatnonzero(column["size"] != size)
            if len(wrong):
                raise DataError(
                    f"{path}: row {int(wrong[0])} has {int(column['size'][wrong[0]])} bytes of {name}",
                    f"{size}, as its manifest says",
                    "Copy the features again",
                )
        data = np.asarray(np.memmap(path, np.uint8, "r"))
        return cls(data, columns[0]["ptr"], columns[1]["ptr"], sizes)

    def row(self, local: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the bytes of a row's features and of its objects, views of the file."""
        first, second = int(self.features[local]), int(self.objects[local])
        return self.data[first : first + self.sizes[0]], self.data[second : second + self.sizes[1]]
