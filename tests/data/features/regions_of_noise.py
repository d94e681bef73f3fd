"""Small random regions for the tests of features."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dsvlp.data.dataset import Dataset
from dsvlp.data.features.rows import RegionRows, RegionSource
from dsvlp.data.features.writer import Options, write
from dsvlp.types import LabelTable

CLASSES = LabelTable("noise", (2, 5, 9), ("two", "five", "nine"))
WIDTH = 8
QUIET = Options(objects=4, rows_per_shard=4, progress=False)


def regions_of(dataset: Dataset, row: int, count: int, seed: int = 0, width: int = WIDTH) -> RegionRows:
    """Returns `count` random objects of one image."""
    draws = np.random.default_rng([seed, row])
    sides = dataset.sizes(np.array([row]))[0, [1, 0]]
    first, size = draws.uniform(0, 0.7, (count, 2)), draws.uniform(0.1, 0.3, (count, 2))
    return RegionRows(
        np.array([count]),
        draws.standard_normal((count, width)).astype(np.float32),
        (np.concatenate([first, first + size], axis=1) * [*sides, *sides]).astype(np.float32),
        draws.choice(CLASSES.ids, count).astype(np.int64),
        draws.random(count).astype(np.float32),
    )


def source_of(dataset: Dataset, counts: Sequence[int], seed: int = 0, width: int = WIDTH) -> RegionSource:
    """Returns random regions of a data set, `counts[row]` objects an image, one image a chunk."""
    return RegionSource(
        "noise",
        "a draw",
        "noise",
        width,
        CLASSES,
        lambda first: (regions_of(dataset, r, counts[r], seed, width) for r in range(first, dataset.images)),
        {"seed": seed},
    )


def make_features(dataset: Dataset, out: Path, counts: Sequence[int] | None = None, **options) -> Dataset:
    """Returns the data set opened again, with random features that were written for it."""
    counts = counts if counts is not None else [row % 6 for row in range(dataset.images)]
    width = options.pop("width", WIDTH)
    write(source_of(dataset, counts, width=width), dataset, out, replace(QUIET, **options))
    return Dataset.open(dataset.path, features=out)
