"""Which entry of a feature file belongs to which image of a data set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

from dsvlp.data.readers.base import IMAGE_SUFFIXES, existing
from dsvlp.errors import DataError
from dsvlp.types import LabelTable

if TYPE_CHECKING:
    from dsvlp.data.dataset import Dataset

T = TypeVar("T")

_NUMBER = re.compile(r"(?:COCO_[a-z]+\d{4}_)?0*(\d+)")


def short(id: str) -> str:
    """Returns what an image's id has in common with those of feature files.

    The suffix goes, and of a number also COCO's prefix and the zeros before it: "000000391895.jpg",
    "COCO_val2014_000000391895" and "391895" are one image.
    """
    path = PurePosixPath(id)
    bare = id.removesuffix(path.suffix) if path.suffix.lower() in IMAGE_SUFFIXES else id
    number = _NUMBER.fullmatch(bare)
    return number[1] if number else bare


def places_of_rows(dataset: Dataset, places: Mapping[str, T], where: Path) -> list[T | None]:
    """Returns for each row of the data set its image's place, None where there is none.

    Args:
        dataset: the data set.
        places: image id -> place, as the file names them.
        where: the file, for messages.

    Raises:
        DataError: an image's short id fits two entries, or none of the images is there.
    """
    shorts: dict[str, list[str]] = {}
    for id in places:
        shorts.setdefault(short(id), []).append(id)
    found: list[T | None] = []
    for row in range(dataset.images):
        id = dataset.image_id(row)
        like = [id] if id in places else shorts.get(short(id), [])
        if len(like) > 1:
            raise DataError(
                f"{where}: the image {id!r} (row {row}) may be {' or '.join(map(repr, like))}", "one of them"
            )
        found.append(places[like[0]] if like else None)
    if dataset.images and all(place is None for place in found):
        raise DataError(
            f"{where} has nothing of the images of {dataset.path}: it names {next(iter(places), 'none')!r}, "
            f"the data set {dataset.image_id(0)!r}",
            "features of this data set's images, by their ids",
            "Check that both are of the same source",
        )
    return found


def missing_ids(dataset: Dataset, found: list[T | None]) -> list[str]:
    """Returns the ids of the rows that have no place."""
    return [dataset.image_id(row) for row, place in enumerate(found) if place is None]


def read_classes(path: Path, name: str) -> LabelTable:
    """Returns the label table of a text file with a class a line; ids count from 0.

    Raises:
        DataError: there is no such file, it is not UTF-8, or empty.
    """
    try:
        names = existing(path, "class names").read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from error
    if not names:
        raise DataError(f"{path} is empty", "a class name a line")
    return LabelTable(name, tuple(range(len(names))), tuple(names))
