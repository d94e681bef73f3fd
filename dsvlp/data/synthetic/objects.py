"""What a detector would see in the pictures of the synthetic world: their shapes, and background beside them.

A shape's feature is a fixed projection of its colour, kind and size with noise (`regions`); its box is the
true one, jittered. Background objects have boxes anywhere, a feature and a class of their own, and little
confidence. All stand in a drawn order, and their number is drawn: neither place nor number tells which shapes
a caption names, or in which order.

Legend: K shapes of a scene, N objects of an image, F feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import PurePosixPath

import numpy as np

from dsvlp.data import check
from dsvlp.data.dataset import Dataset
from dsvlp.data.features.rows import RegionRows, RegionSource
from dsvlp.data.synthetic.draws import Draws
from dsvlp.data.synthetic.regions import normal, regions
from dsvlp.data.synthetic.world import BOX_LABELS, World
from dsvlp.seed import key_of
from dsvlp.types import LabelTable

FORMAT = 1
BACKGROUND = len(BOX_LABELS.ids)
OBJECT_LABELS = LabelTable(
    "synthetic_objects", (*BOX_LABELS.ids, BACKGROUND), (*BOX_LABELS.names, "background")
)

_JITTER = 0.02  # of the picture's side, most that an edge of a shape's box is off
_SIDES = (0.15, 0.4)  # of a background object, shares of the picture
_CONFIDENCE = (0.2, 0.6)  # of a background object; a shape's begins where it ends
_DEVIATION = 0.3  # of the noise on a background's feature


def read_objects(dataset: Dataset, world: World, objects: int) -> RegionSource:
    """Returns the source of the objects in a world's pictures.

    Args:
        dataset: a data set of `world`.
        world: its parameters; `feature_width` is F.
        objects: N, the most objects of an image.
    """
    return RegionSource(
        name="synthetic world",
        detector="the world's own boxes",
        backbone="a projection of colour, kind and size",
        width=world.feature_width,
        table=OBJECT_LABELS,
        rows=lambda first: _rows(dataset, world, objects, first),
        arguments={"format": FORMAT},
    )


def _rows(dataset: Dataset, world: World, objects: int, first: int) -> Iterator[RegionRows]:
    for stored in check.rows(dataset, np.arange(first, dataset.images)):
        index = int(PurePosixPath(dataset.image_id(stored.row)).stem.rpartition("-")[2])
        size = np.array([stored.width, stored.height] * 2, np.float32)
        shares = objects_of(world, index, stored.boxes_xyxy / size, objects)
        yield RegionRows(
            shares.counts, shares.features, shares.boxes_xyxy * size, shares.labels, shares.confidences
        )


def objects_of(world: World, index: int, boxes: np.ndarray, objects: int) -> RegionRows:
    """Returns the objects of scene `index`, their boxes as shares of the picture.

    Args:
        world: seed, split, F.
        index: the scene's number.
        boxes: float32 [K, 4], the true boxes of its shapes, as shares.
        objects: N.
    """
    draws, shapes = Draws(world.key(index, "objects")), regions(world, world.scene(index))
    backgrounds = draws.below(max(0, objects - len(boxes)) + 1)
    noise = normal(np.array([world.key(index, "background")]), backgrounds * world.feature_width)
    features = background(world.feature_width) + _DEVIATION * noise.reshape(backgrounds, world.feature_width)
    jittered = [[edge + draws.uniform(-_JITTER, _JITTER) for edge in box] for box in boxes.tolist()]
    anywhere = [_box(draws) for _ in range(backgrounds)]
    confidences = [draws.uniform(*_CONFIDENCE) for _ in range(backgrounds)]
    order = draws.shuffled(range(len(boxes) + backgrounds))
    labels = np.concatenate([shapes.labels, np.full(backgrounds, BACKGROUND)])
    return RegionRows(
        np.array([len(order)]),
        np.concatenate([shapes.features, features.astype(np.float16)])[order],
        np.clip(np.array(jittered + anywhere, np.float32), 0, 1)[order],
        labels[order].astype(np.int64),
        np.concatenate([shapes.confidence, np.array(confidences, np.float32)])[order],
    )


def _box(draws: Draws) -> list[float]:
    width, height = draws.uniform(*_SIDES), draws.uniform(*_SIDES)
    left, top = draws.uniform(0, 1 - width), draws.uniform(0, 1 - height)
    return [left, top, left + width, top + height]


@cache
def background(width: int) -> np.ndarray:
    """Returns float32 [F], the feature of no shape, the same in every world."""
    return normal(np.array([key_of("synthetic", "background projection")]), width)
