"""Writes a synthetic world to disk, as raw data that `read_world` reads.

    world.json           parameters, counts, label tables, answers
    annotations.jsonl    a line an image: shapes with class, size and box; captions with phrases; questions
    statements.jsonl     a line for each two images: left, right, text, true
    images/ID.jpg        baseline JPEG, quality 95, 4:4:4
    maps/ID.png          grey PNG of class ids
    features/*.npy       offsets [N + 1]; features, boxes, labels, confidence: rows offsets[i]:offsets[i + 1]
    vocab.txt            a WordPiece vocabulary that holds every word of the texts

The folder is written under another name and renamed when it is complete.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dsvlp.data.synthetic.draw import Picture, draw
from dsvlp.data.synthetic.language import captions
from dsvlp.data.synthetic.questions import ANSWERS, questions, statement
from dsvlp.data.synthetic.regions import Regions, regions
from dsvlp.data.synthetic.vocabulary import write_vocabulary
from dsvlp.data.synthetic.world import BOX_LABELS, MAP_LABELS, Scene, World
from dsvlp.errors import DataError

FORMAT = 1

log = logging.getLogger(__name__)


def write_world(
    folder: Path, world: World, images: int, progress: Callable[[int], None] | None = None
) -> Path:
    """Returns `folder`, filled with scenes 0 .. images-1 of `world`.

    Args:
        folder: where to write; if it already holds just this world, nothing is done.
        world: seed, split, picture size, most shapes.
        images: number of scenes; image i is the same whatever this is.
        progress: called with the number of scenes written so far.

    Raises:
        DataError: `folder` holds something else, or the parameters make no sense.
    """
    about = _about(world, images)
    if folder.exists():
        _refuse_other(folder, about)
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in ("images", "maps", "features"):
        (partial / name).mkdir(parents=True)
    _write_scenes(partial, world, images, progress)
    write_vocabulary(partial / "vocab.txt")
    (partial / "world.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    partial.rename(folder)
    log.info("wrote %d scenes (%s, seed %d) to %s", images, world.split, world.seed, folder)
    return folder


def _about(world: World, images: int) -> dict[str, Any]:
    """Returns what stands in `world.json`; raises `DataError` for parameters that cannot be."""
    limits = (
        ("images", images, 1, 10**8),
        ("image_size", world.image_size, 32, 4096),
        ("max_shapes", world.max_shapes, 1, 4),
        ("feature_width", world.feature_width, 1, 4096),
    )
    for name, value, low, high in limits:
        if not low <= value <= high:
            raise DataError(
                f"synthetic world: {name} = {value}", f"{low} to {high}", f"Choose another {name}"
            )
    return {
        "format": FORMAT,
        "images": images,
        **asdict(world),
        "boxes": BOX_LABELS.to_json(),
        "segmentation": MAP_LABELS.to_json(),
        "answers": list(ANSWERS),
    }


def _refuse_other(folder: Path, about: dict[str, Any]) -> None:
    """Raises `DataError` unless `folder` holds the complete world that `about` describes."""
    path = folder / "world.json"
    if not path.is_file():
        raise DataError(f"{folder} exists and is no synthetic world", "a new folder", "Choose another --out")
    found = json.loads(path.read_text(encoding="utf-8"))
    other = [f"{key} = {found.get(key)!r}" for key in about if found.get(key) != about[key]]
    if other:
        raise DataError(
            f"{folder} holds another synthetic world ({', '.join(other)[:200]})",
            "the same parameters or a new folder",
            "Remove the folder or choose another --out",
        )


def _write_scenes(folder: Path, world: World, images: int, progress: Callable[[int], None] | None) -> None:
    boxes, found = [], []
    previous: Scene | None = None
    with (
        (folder / "annotations.jsonl").open("w", encoding="utf-8") as annotations,
        (folder / "statements.jsonl").open("w", encoding="utf-8") as statements,
    ):
        for index in range(images):
            scene = world.scene(index)
            picture = draw(world, scene)
            name = world.image_id(index)
            (folder / "images" / name).write_bytes(picture.jpeg())
            (folder / "maps" / name).with_suffix(".png").write_bytes(picture.png())
            annotations.write(json.dumps(_annotation(world, scene, picture)) + "\n")
            boxes.append(picture.boxes_xyxy)
            found.append(regions(world, scene))
            if index % 2 and previous is not None:
                statements.write(json.dumps(_statement(world, previous, scene)) + "\n")
            previous = scene
            if progress is not None:
                progress(index + 1)
    _write_features(folder / "features", boxes, found)


def _annotation(world: World, scene: Scene, picture: Picture) -> dict[str, Any]:
    return {
        "image": world.image_id(scene.index),
        "shapes": [
            {"label": shape.label, "size": shape.size, "box": [int(edge) for edge in box]}
            for shape, box in zip(scene.shapes, picture.boxes_xyxy, strict=True)
        ],
        "captions": [
            {"text": text.text, "phrases": [[p.shape, p.start, p.end] for p in text.phrases]}
            for text in captions(world, scene)
        ],
        "questions": [asdict(question) for question in questions(world, scene)],
    }


def _statement(world: World, left: Scene, right: Scene) -> dict[str, Any]:
    made = statement(world, left, right)
    names = {"left": world.image_id(left.index), "right": world.image_id(right.index)}
    return {**names, "text": made.text, "true": made.true}


def _write_features(folder: Path, boxes: list[np.ndarray], found: list[Regions]) -> None:
    """Writes the regions of all scenes one after the other, and where each scene's begin."""
    counts = [len(each.labels) for each in found]
    np.save(folder / "offsets.npy", np.cumsum([0, *counts], dtype=np.int64))
    np.save(folder / "boxes.npy", np.concatenate(boxes))
    for name in ("features", "labels", "confidence"):
        np.save(folder / f"{name}.npy", np.concatenate([getattr(each, name) for each in found]))
