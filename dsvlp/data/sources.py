"""A run's data sets read as one: rows and samples are numbered through all of them, in their order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dsvlp.data.dataset import Dataset
from dsvlp.data.pseudo import PseudoLabels
from dsvlp.data.rows import RowReader, StoredRow


class Sources:
    """Reads rows, names and texts of several data sets. One thread uses it.

    `source` is everywhere int64 [N], the data set's number; `rows` and `samples` are the data sets' own
    numbers, int64 [N], unless they are said to be numbered through.

    Args:
        datasets: the data sets, in the order that numbers them.
        annotations: what is read beside an image, see `RowReader`.
        open_shards: shards of each data set that stay open.
        pseudo: which of its features' objects give an image's boxes; None: the boxes are its own.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        annotations: frozenset[str],
        open_shards: int,
        pseudo: PseudoLabels | None = None,
    ) -> None:
        self._datasets, self._pseudo = datasets, pseudo
        self._readers = [RowReader(dataset, annotations, open_shards) for dataset in datasets]
        self._first_row = _starts([dataset.images for dataset in datasets])
        self._first_sample = _starts([dataset.samples_count for dataset in datasets])

    def read(self, source: np.ndarray, rows: np.ndarray) -> list[StoredRow]:
        """Returns the stored rows."""
        out: list[StoredRow | None] = [None] * len(rows)
        for number in np.unique(source):
            places = np.flatnonzero(source == number)
            stored, features = self._readers[number].read(rows[places]), self._datasets[number].features
            if self._pseudo is not None and features is not None:
                stored = self._pseudo.given(features, rows[places], stored)
            for place, row in zip(places, stored, strict=True):
                out[place] = row
        return out  # type: ignore[return-value]

    def names(self, source: np.ndarray, rows: np.ndarray) -> list[str]:
        """Returns "data set/image id" of rows, for messages."""
        return [
            f"{self._datasets[number].path.name}/{self._datasets[number].image_id(int(row))}"
            for number, row in zip(source.tolist(), rows, strict=True)
        ]

    def texts(self, source: np.ndarray, samples: np.ndarray) -> list[str]:
        """Returns the samples' texts."""
        return [
            self._datasets[number].text(int(self._datasets[number].samples["text"][sample]))
            for number, sample in zip(source.tolist(), samples.tolist(), strict=True)
        ]

    def answers(self, source: np.ndarray, samples: np.ndarray) -> list[list[tuple[str, float]]]:
        """Returns the samples' (answer, score) pairs, none of a caption."""
        return [
            self._datasets[number].answers_of(sample)
            for number, sample in zip(source.tolist(), samples.tolist(), strict=True)
        ]

    def rows_of(self, source: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Returns the samples' image rows, int64 [N]."""
        found = [
            self._datasets[number].samples["rows"][sample, 0]
            for number, sample in zip(source.tolist(), samples.tolist(), strict=True)
        ]
        return np.array(found, np.int64)

    def row_numbers(self, source: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Returns the rows numbered through; both arguments broadcast."""
        return rows + self._first_row[source]

    def sample_numbers(self, source: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Returns the samples numbered through; both arguments broadcast."""
        return samples + self._first_sample[source]

    def find_samples(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (source, samples) of samples numbered through."""
        source = np.searchsorted(self._first_sample, numbers, "right") - 1
        return source, numbers - self._first_sample[source]


def _starts(counts: Sequence[int]) -> np.ndarray:
    """Returns where each source's numbers begin when the sources are numbered through, int64 [sources]."""
    return np.cumsum([0, *counts[:-1]], dtype=np.int64)
