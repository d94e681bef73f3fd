"""Pairs of captions for one held-out picture that differ in a single word: does the model read relations?"""

from __future__ import annotations

from dataclasses import dataclass

from dsvlp.data.synthetic.draw import draw
from dsvlp.data.synthetic.draws import Draws
from dsvlp.data.synthetic.language import RELATION_SWAPS, relation_captions
from dsvlp.data.synthetic.world import World
from dsvlp.errors import DataError


@dataclass(frozen=True)
class RelationPair:
    """A held-out picture with a true and a false caption.

    Attributes:
        image: the number of the held-out scene, and its row in the held-out data set of the same seed.
        jpeg: its picture.
        true: a caption that holds.
        false: the same with left for right, right for left, above for below or below for above.
    """

    image: int
    jpeg: bytes
    true: str
    false: str


def relation_pairs(count: int, seed: int, image_size: int = 96, max_shapes: int = 2) -> list[RelationPair]:
    """Returns one pair for each of the first `count` held-out scenes of a world.

    Raises:
        DataError: a world of single shapes has no relations.
    """
    if max_shapes < 2:
        raise DataError(f"relation pairs of a world with max_shapes = {max_shapes}", "2 to 4")
    world = World(seed, "heldout", image_size, max_shapes)
    return [_pair(world, index) for index in range(count)]


def _pair(world: World, index: int) -> RelationPair:
    scene = world.scene(index)
    draws = Draws(world.key(index, "relation pair"))
    first = draws.below(2)
    true = draws.choice(list(relation_captions(scene, first, 1 - first))).text
    false = " ".join(RELATION_SWAPS.get(word, word) for word in true.split(" "))
    return RelationPair(index, draw(world, scene).jpeg(), true, false)
