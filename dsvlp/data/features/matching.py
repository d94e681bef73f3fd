"""Which entry of a feature file belongs to which image of a data set."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from dsvlp.data.features.rows import RegionRows, RegionSource
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


def source_of(
    name: str,
    where: str,
    dataset: Dataset,
    places: Mapping[str, T],
    read: Callable[[int, T], RegionRows],
    table: LabelTable | None,
    arguments: dict[str, Any],
) -> RegionSource:
    """Returns the source of regions that others made, image by image in any order.

    Args:
        name: of the form they come in.
        where: the files, for messages.
        dataset: whose images they are.
        places: image id -> place, as the files name them.
        read: (row, its place) -> the regions of its image.
        table: the classes.
        arguments: of the source.

    Raises:
        DataError: as `places_of_rows`, none has an object, or one that is looked at cannot be read.
    """
    found = places_of_rows(dataset, places, where)
    entries = (read(row, place).features for row, place in enumerate(found) if place is not None)
    width = next((features.shape[1] for features in entries if len(features)), None)
    if width is None:
        raise DataError(f"{where} has no object in any image of {dataset.path}", "regions", "Check the files")

    def rows(first: int) -> Iterator[RegionRows]:
        for row in range(first, dataset.images):
            place = found[row]
            regions = None if place is None else read(row, place)
            yield regions if regions is not None and regions.counts.any() else RegionRows.nothing(width)

    missing = [dataset.image_id(row) for row, place in enumerate(found) if place is None]
    told = "as in the files"
    return RegionSource(f"{name} {where}", told, told, width, table, rows, arguments, missing)


def places_of_rows(dataset: Dataset, places: Mapping[str, T], where: str) -> list[T | None]:
    """Returns for each row of the data set its image's place, None where there is none.

    Args:
        dataset: the data set.
        places: image id -> place, as the file names them.
        where: the files, for messages.

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
                f"{where}: the image {id!r} (row {row}) may be {' or '.join(map(repr, like))}",
                "one of them",
                "Name it there by its whole id, or leave the others out",
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


def read_classes(path: Path, name: str) -> LabelTable:
    """Returns the label table of a text file with a class a line; ids count from 0.

    Raises:
        DataError: there is no such file, it is not UTF-8, or empty.
    """
    try:
        names = existing(path, "class names").read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}", fix="Save it as UTF-8") from error
    if not names:
        raise DataError(f"{path} is empty", "a class name a line", "Check the path")
    return LabelTable(name, tuple(range(len(names))), tuple(names))
