"""Memory-mapped tables beside the `.beton` shards: texts, image ids, the sample index.

A string table is two files: `X.bin`, the UTF-8 bytes one after another, and `X.npy`, int64
[count + 1] offsets into it. The sample index is `samples.npy` (`SAMPLE`), sorted by first row,
and `first_sample.npy`, int64 [images + 1]: the samples of image row r are
`first_sample[r]:first_sample[r + 1]`. Nothing here is read into memory as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from dsvlp.errors import DataError

TASKS = ("caption", "question", "statement")

SAMPLE = np.dtype([("task", "u1"), ("rows", "<i8", (2,)), ("text", "<i8"), ("label", "<i4")])


def load_array(path: Path, dtype: np.dtype | str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a read-only memory map of an `.npy` file.

    Raises:
        DataError: the file is absent, not an `.npy`, or of another type or shape.
    """
    try:
        # An empty array cannot be mapped; it is read instead.
        array = np.load(path, mmap_mode="r" if 0 not in shape else None, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError, TokenError) as error:
        raise DataError(
            f"{path} cannot be read as an array: {error}", fix="Write the data set again"
        ) from error
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise DataError(f"{path} holds {array.dtype} {array.shape}", f"{np.dtype(dtype)} {shape}")
    return array


class Strings:
    """A read-only string table of `count` UTF-8 strings; threads may share it."""

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self._path = folder / f"{name}.bin"
        self._offsets = load_array(folder / f"{name}.npy", "<i8", (count + 1,))
        try:
            size = self._path.stat().st_size
        except OSError as error:
            raise DataError(f"{self._path} cannot be read: {error}") from error
        if self._offsets[0] != 0 or self._offsets[-1] != size:
            raise DataError(f"{self._path} has {size} bytes", f"{int(self._offsets[-1])}, as its offsets say")
        self._bytes = np.memmap(self._path, np.uint8, "r") if size else np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def raw(self, index: int) -> bytes:
        """Returns the bytes of one string; raises `DataError` where the offsets are damaged."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self._path.stem} {index} of {len(self)}")
        first, end = int(self._offsets[index]), int(self._offsets[index + 1])
        if not 0 <= first <= end <= len(self._bytes):
            raise DataError(f"{self._path.with_suffix('.npy')}: entry {index} spans {first} to {end}")
        return self._bytes[first:end].tobytes()

    def __getitem__(self, index: int) -> str:
        try:
            return self.raw(index).decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{self._path}: entry {index} is not UTF-8: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


def write_strings(folder: Path, name: str, strings: Iterable[str | bytes]) -> int:
    """Writes a string table and returns how many strings it has."""
    offsets = [0]
    with (folder / f"{name}.bin").open("wb") as file:
        for string in strings:
            data = string.encode() if isinstance(string, str) else string
            file.write(data)
            offsets.append(offsets[-1] + len(data))
    np.save(folder / f"{name}.npy", np.asarray(offsets, "<i8"))
    return len(offsets) - 1


def write_samples(folder: Path, samples: np.ndarray, images: int) -> None:
    """Writes the sample index.

    Args:
        folder: where `samples.npy` and `first_sample.npy` go.
        samples: `SAMPLE` [N], sorted by first row; `rows` in the range 0 .. images-1, or -1 for none.
        images: rows of the data set.
    """
    first = np.searchsorted(samples["rows"][:, 0], np.arange(images + 1))
    np.save(folder / "samples.npy", samples)
    np.save(folder / "first_sample.npy", first.astype("<i8"))


def check_samples(path: Path, samples: Any, first_sample: Any, images: int, texts: int) -> None:
    """Raises `DataError` where the sample index names a row, text or task that does not exist."""
    if len(first_sample) and (
        first_sample[0] != 0 or first_sample[-1] != len(samples) or (np.diff(first_sample) < 0).any()
    ):
        raise DataError(
            f"{path / 'first_sample.npy'} does not divide {len(samples)} samples among {images} images"
        )
    rows, block = samples["rows"], 1 << 20
    for start in range(0, len(samples), block):
        part = slice(start, start + block)
        first, second = rows[part, 0], rows[part, 1]
        owner = np.searchsorted(first_sample, np.arange(start, start + len(first)), side="right") - 1
        text = samples["text"][part]
        bad = (first != owner) | (second < -1) | (second >= images) | (text < 0) | (text >= texts)
        bad |= samples["task"][part] >= len(TASKS)
        if bad.any():
            at = start + int(np.flatnonzero(bad)[0])
            raise DataError(
                f"{path / 'samples.npy'}: sample {at} is {samples[at]}",
                f"rows and texts below {images}, {texts}",
            )
