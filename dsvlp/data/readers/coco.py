"""COCO: captions (2014 and 2017 json), instances, panoptic json with its PNGs, maps of class ids.

Legend: K boxes of an image, S segments of a panoptic picture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsvlp.data.manifest import Tally
from dsvlp.data.readers.base import (
    OTHER_FILE,
    Reader,
    Tables,
    existing,
    get,
    inside,
    load_json,
    records,
)
from dsvlp.data.readers.coco_tables import TABLES
from dsvlp.errors import DataError
from dsvlp.types import ImageSource, LabelTable, Sample

MAX_CATEGORY = (1 << 16) - 1  # class ids are stored in PNGs of at most 16 bits
MAX_COORDINATE = 1e9  # pixels; far beyond any picture, and float32 can hold sums of them


@dataclass(frozen=True)
class Captions:
    """Images and captions of a captions json: image id -> file name, image id -> (place, caption)."""

    path: Path
    files: dict[int, str]
    texts: dict[int, list[tuple[str, str]]]


@dataclass(frozen=True)
class Instances:
    """Objects of an instances json.

    Attributes:
        table: its categories.
        boxes_xyxy: image id -> float32 [K, 4]; an image with no object has K = 0, one that the file
            does not list is absent.
        labels: image id -> int32 [K] category ids.
    """

    table: LabelTable
    boxes_xyxy: dict[int, np.ndarray]
    labels: dict[int, np.ndarray]


@dataclass(frozen=True)
class Maps:
    """Segmentation maps: their table, image id -> PNG, and for panoptic PNGs image id -> int64 [S, 2]."""

    table: LabelTable
    paths: dict[int, Path]
    segments: dict[int, np.ndarray]


def read(
    captions: Path | str,
    images: Path | str,
    instances: Path | str | None = None,
    panoptic: Path | str | None = None,
    maps: Path | str | None = None,
    table: str | None = None,
) -> Reader:
    """Returns the reader of COCO's files as they are published.

    Args:
        captions: `captions_*.json`.
        images: the folder of its pictures.
        instances: `instances_*.json`, for boxes; crowd boxes are left out and counted.
        panoptic: `panoptic_*.json`; its RGB PNGs lie in the folder of the same name beside it.
        maps: instead, a folder of one PNG of class ids for each image, `<image's stem>.png`.
        table: the label table of `maps`: coco_panoptic_133, coco_stuff_png or coco_stuff_json.

    Raises:
        DataError: a file is absent or not of this format; names file, record and key.
    """
    skipped = Tally()
    texts = _captions(existing(captions, "captions"))
    folder = existing(images, "images", folder=True)
    objects = _instances(existing(instances, "instances"), skipped) if instances is not None else None
    regions = _maps(texts, panoptic, maps, table)
    return Reader(
        name="coco",
        source=str(captions),
        samples=lambda: _samples(texts, folder, objects, regions),
        tables=Tables(regions.table if regions else None, objects.table if objects else None),
        arguments={
            "images": str(images),
            "instances": str(instances),
            "panoptic": str(panoptic),
            "maps": str(maps),
            "table": table,
        },
        images=len(texts.texts),
        skipped=skipped,
    )


def _captions(path: Path) -> Captions:
    value = load_json(path)
    files = _named(value, "images", "file_name", path)
    texts: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for where, record in records(value, "annotations", path):
        image = get(record, "image_id", int, where)
        if image not in files:
            raise DataError(
                f"{where}: image_id {image} is not among the images", "an id of its `images`", OTHER_FILE
            )
        texts[image].append((where, get(record, "caption", str, where)))
    return Captions(path, files, texts)


def _named(value: dict[str, Any], key: str, name: str, path: Path) -> dict[int, str]:
    """Returns id -> `name` of a list's records; raises `DataError` where one id has two names."""
    found: dict[int, str] = {}
    for where, record in records(value, key, path):
        number, text = get(record, "id", int, where), get(record, name, str, where)
        if found.setdefault(number, text) != text:
            raise DataError(
                f"{where}: id {number} is {text!r} here and {found[number]!r} before",
                f"one {name} for each id",
                OTHER_FILE,
            )
    return found


def _instances(path: Path, skipped: Tally) -> Instances:
    value = load_json(path)
    table = _categories(value, path, "coco_instances", None)
    known = set(table.ids)
    found: dict[int, list[tuple[list[float], int]]] = {
        get(r, "id", int, where): [] for where, r in records(value, "images", path)
    }
    for where, record in records(value, "annotations", path):
        image, category = get(record, "image_id", int, where), get(record, "category_id", int, where)
        box = _box(record, where)
        if image not in found:
            raise DataError(
                f"{where}: image_id {image} is not among the images", "an id of its `images`", OTHER_FILE
            )
        if category not in known:
            raise DataError(
                f"{where}: category_id {category} is unknown", "an id of its `categories`", OTHER_FILE
            )
        if record.get("iscrowd"):
            skipped.add("crowd box", where)
        else:
            found[image].append((box, category))
    return Instances(
        table,
        {image: np.array([b for b, _ in objects], "<f4").reshape(-1, 4) for image, objects in found.items()},
        {image: np.array([c for _, c in objects], "<i4") for image, objects in found.items()},
    )


def _box(record: Any, where: str) -> list[float]:
    """Returns xyxy of a record's `bbox`, which is x, y, width, height in pixels."""
    box = get(record, "bbox", list, where)
    if len(box) != 4 or not all(type(v) in (int, float) and abs(v) <= MAX_COORDINATE for v in box):
        raise DataError(
            f"{where}: bbox = {str(box)[:80]}",
            "four numbers: x, y, width, height, in pixels",
            "Correct it there, or leave it out",
        )
    x, y, width, height = box
    return [x, y, x + width, y + height]


def _categories(value: dict[str, Any], path: Path, name: str, ignore: int | None) -> LabelTable:
    found = _named(value, "categories", "name", path)
    if not found:
        raise DataError(f"{path}: its list of categories is empty", "at least one category", OTHER_FILE)
    ids = tuple(sorted(found))
    for number in (ids[0], ids[-1]):
        if not 0 <= number <= MAX_CATEGORY:
            raise DataError(
                f"{path}: the category id {number}",
                f"an id from 0 to {MAX_CATEGORY}",
                "Number the categories anew, in the annotations too",
            )
    return LabelTable(name, ids, tuple(found[number] for number in ids), ignore)


def _maps(
    captions: Captions, panoptic: Path | str | None, maps: Path | str | None, table: str | None
) -> Maps | None:
    if panoptic is not None and (maps is not None or table is not None):
        raise DataError("both --panoptic and --maps or --table", "one source of maps", "Leave one out")
    if panoptic is not None:
        return _panoptic(existing(panoptic, "panoptic segments"))
    if maps is None:
        return None
    if table not in TABLES:
        raise DataError(f"--maps with --table {table}", f"one of {', '.join(TABLES)}", "Name the maps' table")
    folder = existing(maps, "maps", folder=True)
    there = {path.stem: path for path in folder.iterdir() if path.suffix.lower() == ".png"}
    stems = {image: Path(name).stem for image, name in captions.files.items()}
    return Maps(TABLES[table](), {i: there[stem] for i, stem in stems.items() if stem in there}, {})


def _panoptic(path: Path) -> Maps:
    value = load_json(path)
    table = _categories(value, path, "", 0)
    official = TABLES["coco_panoptic_133"]()
    name = official.name if table.ids == official.ids else path.stem
    table = LabelTable(name, table.ids, table.names, 0)
    known, folder = set(table.ids), existing(path.with_suffix(""), "the panoptic PNGs", folder=True)
    paths, segments = {}, {}
    for where, record in records(value, "annotations", path):
        image = get(record, "image_id", int, where)
        paths[image] = inside(folder, get(record, "file_name", str, where), where)
        pairs = []
        for number, segment in enumerate(get(record, "segments_info", list, where)):
            place = f"{where}.segments_info[{number}]"
            pairs.append((get(segment, "id", int, place), get(segment, "category_id", int, place)))
            if pairs[-1][1] not in known:
                raise DataError(
                    f"{place}: category_id {pairs[-1][1]} is unknown", "an id of its `categories`", OTHER_FILE
                )
        segments[image] = np.array(pairs, np.int64).reshape(-1, 2)
    return Maps(table, paths, segments)


def _samples(
    captions: Captions, folder: Path, objects: Instances | None, maps: Maps | None
) -> Iterator[Sample]:
    """Yields the captions, those of an image one after another, images in the order of the file."""
    for image, name in captions.files.items():
        if image not in captions.texts:
            continue
        source = ImageSource(
            id=name,
            path=inside(folder, name, f"{captions.path}: image {image}"),
            boxes_xyxy=objects.boxes_xyxy.get(image) if objects else None,
            box_labels=objects.labels.get(image) if objects else None,
            map_path=maps.paths.get(image) if maps else None,
            map_segments=maps.segments.get(image) if maps else None,
        )
        for where, text in captions.texts[image]:
            yield Sample("caption", (source,), text, where=where)
