"""A `.beton` data set opened for reading: counts, texts, ids, the sample index, the shards.

The folder's layout stands in `manifest.py`, `tables.py` and `shard.py`; the loader reads the rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dsvlp.data import answers
from dsvlp.data import manifest as manifests
from dsvlp.data.features.stored import Features
from dsvlp.data.manifest import Manifest
from dsvlp.data.shard import check_shard, row_metadata
from dsvlp.data.tables import SAMPLE, Strings, check_samples, load_array
from dsvlp.errors import DataError
from dsvlp.types import LabelTable


@dataclass(frozen=True)
class Shard:
    """One FFCV file: rows `first` to `first + rows` of the data set."""

    path: Path
    first: int
    rows: int


def shard_name(number: int) -> str:
    """Returns the file name of a shard."""
    return f"rows-{number:05d}.beton"


class Dataset:
    """A data set on disk; everything but the manifest is memory-mapped. Use `Dataset.open`.

    Attributes:
        path: the `.beton` folder.
        manifest: counts, hashes, label tables, what was skipped.
        images, samples_count: number of rows, of samples.
        samples: `tables.SAMPLE` [samples_count], sorted by first row.
        first_sample: int64 [images + 1]; row r has samples `first_sample[r]:first_sample[r + 1]`.
        hashes: uint8 [images, 32], SHA-256 of the images' original bytes.
        shards: the FFCV files in row order.
        features: the region features of the images, None where none were opened.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self.images, self.samples_count = manifest.images, manifest.samples
        self.samples = load_array(path / "samples.npy", SAMPLE, (self.samples_count,))
        self.first_sample = load_array(path / "first_sample.npy", "<i8", (self.images + 1,))
        self.hashes = load_array(path / "hashes.npy", "u1", (self.images, 32))
        self._texts = Strings(path, "texts", manifest.texts)
        self._ids = Strings(path, "ids", self.images)
        self._answers = Strings(path, "answers", self.samples_count) if "answers" in manifest.tables else None
        self._phrases = Strings(path, "phrases", self.images) if "phrases" in manifest.tables else None
        self._answer_table = answers.table_beside(path, manifest)
        first = np.concatenate([[0], np.cumsum(manifest.shard_rows)]).astype(np.int64)
        self.shards = [
            Shard(path / shard_name(number), int(first[number]), rows)
            for number, rows in enumerate(manifest.shard_rows)
        ]
        self._first_row = first[:-1]
        self._row_metadata: dict[int, np.ndarray] = {}
        self.features: Features | None = None

    @classmethod
    def open(
        cls,
        path: Path | str,
        verify: Literal["quick", "full"] = "full",
        features: Path | str | None = None,
    ) -> "Dataset":
        """Returns the data set at `path` after checking it, with its region features where they are named.

        "quick" checks the manifest's own hash, every file's size and the shards' headers, pointers
        and allocation tables; "full" also the SHA-256 of every block and the sample index.

        Raises:
            DataError: names the absent or damaged file, and the block; or the features are another data
                set's.
        """
        path = Path(path)
        if not path.is_dir():
            raise DataError(f"there is no data set {path}", "a folder X.beton", "`dsvlp data write --help`")
        manifest = manifests.load(path)
        if sum(manifest.shard_rows) != manifest.images:
            raise DataError(f"{path}: shards of {manifest.shard_rows} rows for {manifest.images} images")
        for name, record in manifest.files.items():
            check = manifests.check_blocks if verify == "full" else manifests.check_size
            check(path / name, record)
        dataset = cls(path, manifest)
        for shard in dataset.shards:
            check_shard(shard.path, shard.rows)
        if verify == "full":
            check_samples(path, dataset.samples, dataset.first_sample, dataset.images, manifest.texts)
        if features is not None:
            dataset.features = Features.open(features, dataset, verify)
        return dataset

    @property
    def segmentation(self) -> LabelTable | None:
        """The maps' label table, None where no image has a map."""
        return self.manifest.segmentation

    @property
    def boxes(self) -> LabelTable | None:
        """The boxes' label table, None where no image has boxes; where features were opened, it is theirs."""
        return self.objects if self.features is not None else self.manifest.boxes

    @property
    def objects(self) -> LabelTable | None:
        """The label table of the region features' classes, None where there are none."""
        return self.features.table if self.features is not None else None

    @property
    def answers(self) -> LabelTable | None:
        """The answers as classes, None where there is no question with an answer."""
        return self._answer_table

    @property
    def tokenizer(self) -> Path | None:
        """The folder of the vocabulary that `dsvlp data vocab` put beside the data, if any."""
        folder = self.path / "tokenizer"
        return folder if folder.is_dir() else None

    @property
    def all_texts(self) -> Strings:
        """The texts as a table that can be iterated again and again."""
        return self._texts

    def text(self, index: int) -> str:
        """Returns one text."""
        return self._texts[index]

    def texts(self, indices: Iterable[int]) -> list[str]:
        """Returns the texts of these ids, in this order."""
        return [self._texts[int(i)] for i in indices]

    def image_id(self, row: int) -> str:
        """Returns the id that the source gave to an image."""
        return self._ids[row]

    def answers_of(self, sample: int) -> list[tuple[str, float]]:
        """Returns a question's (answer, weight) pairs; empty for other samples."""
        if self._answers is None:
            return []
        return [(answer, weight) for answer, weight in json.loads(self._answers[sample])]

    def phrases(self, row: int) -> np.ndarray:
        """Returns int64 [K, 3] of an image's boxes: text id (-1 for none), first character, end."""
        data = self._phrases.raw(row) if self._phrases is not None else b""
        return np.frombuffer(data, "<i8").reshape(-1, 3)

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (shard, row inside the shard) of rows of the data set, int64 both, of the same shape."""
        shard = np.searchsorted(self._first_row, rows, side="right") - 1
        return shard, rows - self._first_row[shard]

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """Returns int64 [N, 2]: height and width in pixels of image rows int64 [N], as the writer noted them.

        They are read from the mapped metadata of the shards: no JPEG is touched, no memory is held.
        """
        shards, local = self.locate(rows)
        out = np.empty((len(rows), 2), np.int64)
        for number in np.unique(shards):
            here = shards == number
            if number not in self._row_metadata:
                shard = self.shards[number]
                self._row_metadata[number] = row_metadata(shard.path, shard.rows)
            images = self._row_metadata[number]["f0"]  # the first of `fields.ROW`
            out[here, 0], out[here, 1] = images["height"][local[here]], images["width"][local[here]]
        return out
