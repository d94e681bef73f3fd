"""Scenes of coloured shapes as pure functions of (seed, split, index).

The picture holds a 3 x 3 board; a shape lives in one cell and never leaves it, so shapes neither overlap
nor touch the border. Splits are by combination: `held_out` says of (colour and shape, relation, colour
and shape) by a hash alone whether it is kept for held-out scenes, whatever the seed. Every relation that
holds between two shapes of a scene belongs to the scene's split, while each colour, shape, relation and
coloured shape is common in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np

from dsvlp.data.synthetic.draws import Draws
from dsvlp.seed import fold, key_of, uniform
from dsvlp.types import LabelTable

Split = Literal["train", "heldout"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 25, 30),
    "orange": (250, 140, 10),
    "yellow": (245, 230, 25),
    "green": (25, 160, 45),
    "cyan": (20, 220, 225),
    "blue": (30, 60, 230),
    "purple": (125, 30, 170),
    "pink": (255, 135, 195),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
SIZES = ("small", "big")
CLASSES = tuple((colour, kind) for colour in COLOURS for kind in SHAPES)
CANONICAL = ("left of", "above", "bigger than")
INVERSE = {"right of": "left of", "below": "above", "smaller than": "bigger than"}
INVERSE |= {canonical: other for other, canonical in INVERSE.items()}

HELD_OUT_SHARE = 0.25
CELLS = tuple((row, column) for row in range(3) for column in range(3))
_MARGIN = 0.05  # of the picture's side: random crops cut a shape at the border in part only
_CELL = (1 - 2 * _MARGIN) / 3
_RADII = {"small": (0.08, 0.09), "big": (0.135, 0.147)}  # a small shape is smaller than any big one
_JITTER = 0.04  # keeps "left of" left of: a knight's move stays wider than high
_SINGLE_SHARE = 0.25  # training scenes with one shape
_ATTEMPTS = 60  # to place one more shape before the scene stays smaller

BOX_LABELS = LabelTable(
    "synthetic_boxes", tuple(range(len(CLASSES))), tuple(f"{colour} {kind}" for colour, kind in CLASSES)
)
MAP_LABELS = LabelTable(
    "synthetic", tuple(range(len(CLASSES) + 1)), ("background", *BOX_LABELS.names), ignore=255
)


@dataclass(frozen=True)
class Shape:
    """One drawn shape.

    Attributes:
        label: its class, an index of `CLASSES`.
        size: "small" or "big".
        cell: (row, column) on the board, 0 to 2 from the top left.
        x, y: centre, as shares of the picture's side.
        radius: of the circle that holds the shape, the same unit.
        angle: radians that it is turned by.
    """

    label: int
    size: str
    cell: tuple[int, int]
    x: float
    y: float
    radius: float
    angle: float

    @property
    def colour(self) -> str:
        """Its colour's word."""
        return CLASSES[self.label][0]

    @property
    def kind(self) -> str:
        """Its shape's word."""
        return CLASSES[self.label][1]


@dataclass(frozen=True)
class World:
    """What determines every scene and every byte drawn from it.

    Attributes:
        seed: another seed is another world with the same held-out combinations.
        split: "train" or "heldout".
        image_size: pixels, both sides.
        max_shapes: most shapes in a scene, 1 to 4.
        feature_width: F of the region features.
    """

    seed: int = 0
    split: Split = "train"
    image_size: int = 96
    max_shapes: int = 2
    feature_width: int = 64

    def scene(self, index: int) -> "Scene":
        """Returns scene `index`, the same whatever the number of scenes."""
        draws = Draws(self.key(index, "scene"))
        if self._count(draws) == 1:
            return Scene(index, (self._single(index, draws),))
        shapes = self._pair(index, draws)
        wanted = draws.below(self.max_shapes - 1) + 2
        while len(shapes) < wanted and (extra := self._extra(shapes, draws)) is not None:
            shapes = (*shapes, extra)
        return Scene(index, shapes)

    def key(self, index: int, purpose: str) -> int:
        """Returns the key of one purpose's draws for one image."""
        base = _base_key(self.seed, self.split, self.max_shapes, purpose)
        return int(fold(np.array([base], dtype=np.int64), index)[0])

    def image_id(self, index: int) -> str:
        """Returns the image's file name, unique over splits and seeds."""
        return f"{self.split}-{self.seed}-{index:08d}.jpg"

    def _count(self, draws: Draws) -> int:
        """Returns 1, or 2 for "two or more". Held-out scenes have a relation wherever the world has any."""
        alone = draws.uniform() < _SINGLE_SHARE
        return 1 if self.max_shapes == 1 or (alone and self.split == "train") else 2

    def _single(self, index: int, draws: Draws) -> Shape:
        label, size, cell = self._nth(singles(self.split), index)
        return _shape(label, SIZES[size], CELLS[cell], draws)

    def _pair(self, index: int, draws: Draws) -> tuple[Shape, ...]:
        """Returns the two shapes whose combination is number `index`: no repeats before all were used."""
        first, relation, second = self._nth(pairs(self.split), index)
        cells = draws.choice(_placements(CANONICAL[relation]))
        allowed = [(small, small) for small in SIZES]
        allowed += [("big", "small")] * self._has(first, "bigger than", second)
        allowed += [("small", "big")] * self._has(second, "bigger than", first)
        sizes = draws.choice(allowed)
        shapes = tuple(_shape(*given, draws) for given in zip((first, second), sizes, cells, strict=True))
        return shapes if draws.uniform() < 0.5 else shapes[::-1]

    def _extra(self, shapes: tuple[Shape, ...], draws: Draws) -> Shape | None:
        """Returns one more shape that keeps every relation in the split, or None where none was found."""
        free = [cell for cell in CELLS if all(cell != shape.cell for shape in shapes)]
        for _ in range(_ATTEMPTS):
            candidate = _shape(0, draws.choice(SIZES), draws.choice(free), draws)
            fits = np.ones(len(CLASSES), dtype=bool)
            for shape in shapes:
                fits &= self._labels_beside(candidate, shape)
            if fits.any():
                label = int(draws.choice(np.flatnonzero(fits).tolist()))
                return Shape(**{**vars(candidate), "label": label})
        return None

    def _labels_beside(self, candidate: Shape, shape: Shape) -> np.ndarray:
        """Returns bool [classes]: the classes that `candidate` may have, seen from `shape`."""
        fits = np.arange(len(CLASSES)) != shape.label
        for relation in relations(candidate, shape):
            if relation in CANONICAL:
                kept = _held_out_table()[CANONICAL.index(relation), :, shape.label]
            else:
                kept = _held_out_table()[CANONICAL.index(INVERSE[relation]), shape.label, :]
            fits &= kept == (self.split == "heldout")
        return fits

    def _has(self, first: int, relation: str, second: int) -> bool:
        return held_out(first, relation, second) == (self.split == "heldout")

    def _nth(self, combinations: np.ndarray, index: int) -> tuple[int, int, int]:
        lap, place = divmod(index, len(combinations))
        first, second, third = combinations[_permutation(self.seed, lap, len(combinations))[place]]
        return int(first), int(second), int(third)


@dataclass(frozen=True)
class Scene:
    """The shapes of image `index`: no two of the same class; the first two, if there are two, related."""

    index: int
    shapes: tuple[Shape, ...]


def relations(first: Shape, second: Shape) -> list[str]:
    """Returns what holds of `first` to `second`: at most one of position, at most one of size.

    Position goes by the board's cells and the longer axis; an exact diagonal has none.
    """
    down, right = second.cell[0] - first.cell[0], second.cell[1] - first.cell[1]
    found = []
    if abs(right) > abs(down):
        found.append("left of" if right > 0 else "right of")
    elif abs(down) > abs(right):
        found.append("above" if down > 0 else "below")
    if first.size != second.size:
        found.append("bigger than" if first.size == "big" else "smaller than")
    return found


def held_out(first: int, relation: str, second: int) -> bool:
    """Returns whether (class, relation, class) is kept for held-out scenes, however it is said."""
    if relation not in CANONICAL:
        first, relation, second = second, INVERSE[relation], first
    return bool(_held_out_table()[CANONICAL.index(relation), first, second])


@cache
def pairs(split: Split) -> np.ndarray:
    """Returns the split's combinations of place, int64 [n, 3]: (class, 0 left of or 1 above, class)."""
    table = _held_out_table()[:2] == (split == "heldout")
    different = ~np.eye(len(CLASSES), dtype=bool)
    return np.argwhere(table & different)[:, [1, 0, 2]]


@cache
def singles(split: Split) -> np.ndarray:
    """Returns the split's combinations of one shape, int64 [n, 3]: (class, size, cell)."""
    shape = (len(CLASSES), len(SIZES), len(CELLS))
    return np.argwhere((_hash("single", shape) < HELD_OUT_SHARE) == (split == "heldout"))


@cache
def _held_out_table() -> np.ndarray:
    """Returns bool [canonical relations, classes, classes]."""
    return _hash("pair", (len(CANONICAL), len(CLASSES), len(CLASSES))) < HELD_OUT_SHARE


def _hash(purpose: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns one uniform number for each combination, from its indices alone."""
    keys = np.full(shape, key_of("synthetic", "combination", purpose), dtype=np.int64)
    for indices in np.indices(shape):
        keys = fold(keys, indices.astype(np.int64))
    return uniform(keys, "held-out", 1)[..., 0]


@cache
def _base_key(*parts: int | str) -> int:
    return key_of("synthetic", *parts)


@lru_cache(maxsize=8)
def _permutation(seed: int, lap: int, size: int) -> np.ndarray:
    keys = np.full(size, key_of("synthetic", seed, "lap", lap), dtype=np.int64)
    return np.argsort(fold(keys, np.arange(size)), kind="stable")


@cache
def _placements(relation: str) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
    """Returns the pairs of cells between which `relation` holds."""
    board = [Shape(0, "big", cell, 0, 0, 0, 0) for cell in CELLS]
    return tuple((a.cell, b.cell) for a in board for b in board if relation in relations(a, b))


def _shape(label: int, size: str, cell: tuple[int, int], draws: Draws) -> Shape:
    radius = draws.uniform(*_RADII[size])
    slack = min(_JITTER, _CELL / 2 - radius)
    x = _MARGIN + (cell[1] + 0.5) * _CELL + draws.uniform(-slack, slack)
    y = _MARGIN + (cell[0] + 0.5) * _CELL + draws.uniform(-slack, slack)
    return Shape(label, size, cell, x, y, radius, draws.uniform(-0.17, 0.17))
