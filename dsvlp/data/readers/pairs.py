"""Images with captions from a CSV or TSV file, or from a folder of pictures with a text file beside each."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from dsvlp.data.manifest import Tally
from dsvlp.data.readers.base import IMAGE_SUFFIXES, Reader, decode, existing, inside
from dsvlp.errors import DataError
from dsvlp.types import ImageSource, Sample


def read_csv(
    file: Path | str,
    images: Path | str | None = None,
    image_column: str = "image",
    caption_column: str = "caption",
) -> Reader:
    """Returns the reader of a CSV (or, by its suffix, TSV) file with a header line.

    Args:
        file: the table; UTF-8; one pair a line, an image may have several.
        images: the folder that the image column is relative to; the table's own by default.
        image_column, caption_column: the names in the header.

    Raises:
        DataError: the file or a column is absent, or a line does not fit the header.
    """
    path = existing(file, "pairs")
    folder = existing(images, "images", folder=True) if images is not None else path.parent
    header = next(_rows(path), (1, []))[1]
    for column in (image_column, caption_column):
        if column not in header:
            raise DataError(
                f"{path} has no column {column!r}; its header is {header}", fix="Name the columns"
            )
    at = (header.index(image_column), header.index(caption_column))
    return Reader(
        name="csv",
        source=str(file),
        samples=lambda: _csv_samples(path, folder, len(header), at),
        arguments={"images": str(images), "image_column": image_column, "caption_column": caption_column},
    )


def _csv_samples(path: Path, folder: Path, columns: int, at: tuple[int, int]) -> Iterator[Sample]:
    rows = _rows(path)
    next(rows)
    for number, row in rows:
        where = f"{path}: line {number}"
        if not row:
            continue
        if len(row) != columns:
            raise DataError(
                f"{where} has {len(row)} columns",
                f"{columns}, as the header",
                "Put quotes around a text that holds a separator or a new line",
            )
        name, caption = row[at[0]], row[at[1]]
        yield Sample("caption", (ImageSource(name, inside(folder, name, where)),), caption, where=where)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, columns); bytes that are not UTF-8 become lone surrogates."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        before = csv.field_size_limit(1 << 30)  # a huge caption is counted by the writer, not fatal here
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise DataError(
                f"{path}: line {reader.line_num}: {error}", "a CSV file", "Correct that line"
            ) from error
        finally:
            csv.field_size_limit(before)


def read_folder(folder: Path | str) -> Reader:
    """Returns the reader of a folder: each picture's captions stand in the `.txt` of its name, one a line.

    A picture without a text file is left out and counted.

    Raises:
        DataError: there is no such folder, or no picture in it.
    """
    root = existing(folder, "pictures and text files", folder=True)
    pictures = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not pictures:
        raise DataError(
            f"{root} holds no picture", f"files ending in {', '.join(IMAGE_SUFFIXES)}", "Check the path"
        )
    skipped = Tally()
    return Reader(
        name="folder",
        source=str(folder),
        samples=lambda: _folder_samples(root, pictures, skipped),
        images=len(pictures),
        skipped=skipped,
    )


def _folder_samples(root: Path, pictures: list[Path], skipped: Tally) -> Iterator[Sample]:
    for picture in pictures:
        name, text = picture.relative_to(root).as_posix(), picture.with_suffix(".txt")
        if not text.is_file():
            skipped.add("picture without a text file", str(picture))
            continue
        inside(root, text.relative_to(root).as_posix(), str(picture))
        image = ImageSource(name, inside(root, name, str(picture)))
        for number, line in enumerate(decode(text.read_bytes()).splitlines(), 1):
            yield Sample("caption", (image,), line, where=f"{text}: line {number}")
