"""Region features: what a detector would say of each shape, for the systems that read objects.

Legend: K shapes of a scene, F feature width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from dsvlp.data.synthetic.draws import Draws
from dsvlp.data.synthetic.world import COLOURS, SHAPES, SIZES, Scene, Shape, World
from dsvlp.seed import key_of, uniform

_DEVIATION = 0.1  # of the noise on each feature; the features' own is about 1


@dataclass(frozen=True)
class Regions:
    """A scene's regions, in the order of its shapes.

    Attributes:
        features: float16 [K, F].
        labels: int32 [K], classes of `world.BOX_LABELS`.
        confidence: float32 [K], in [0.6, 1).
    """

    features: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray


def regions(world: World, scene: Scene) -> Regions:
    """Returns a fixed projection of each shape's colour, kind and size, with noise on top."""
    draws = Draws(world.key(scene.index, "regions"))
    confidence = [draws.uniform(0.6, 1.0) for _ in scene.shapes]
    keys = np.array([world.key(scene.index, "region noise")], dtype=np.int64)
    noise = normal(keys, len(scene.shapes) * world.feature_width).reshape(len(scene.shapes), -1)
    projection = _projection(world.feature_width)
    features = np.stack([projection[_attributes(shape)].sum(0) for shape in scene.shapes])  # [K, F]
    features += _DEVIATION * noise
    labels = [shape.label for shape in scene.shapes]
    return Regions(features.astype(np.float16), np.array(labels, np.int32), np.array(confidence, np.float32))


def _attributes(shape: Shape) -> list[int]:
    """Returns the three rows of the projection that belong to its colour, kind and size."""
    colour, kind = divmod(shape.label, len(SHAPES))
    return [colour, len(COLOURS) + kind, len(COLOURS) + len(SHAPES) + SIZES.index(shape.size)]


@cache
def _projection(width: int) -> np.ndarray:
    """Returns float32 [attributes, F], the same in every world, so that seeds and splits agree."""
    rows = len(COLOURS) + len(SHAPES) + len(SIZES)
    keys = np.array([key_of("synthetic", "region projection")], dtype=np.int64)
    return normal(keys, rows * width).reshape(rows, width) / np.float32(np.sqrt(3))


def normal(keys: np.ndarray, count: int) -> np.ndarray:
    """Returns float32 [count], near normal: a sum of four uniforms, which no library's version changes."""
    draws = uniform(keys, "normal", 4 * count).reshape(4, count)
    return (draws.sum(0) - 2) * np.float32(np.sqrt(3))
