"""Questions about one scene and statements about two, with answers that the pictures alone tell.

Whatever can be guessed from the words is balanced: yes and no, true and false are drawn first and a
text that fits is made for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from dsvlp.data.synthetic.draws import Draws
from dsvlp.data.synthetic.language import indefinite, noun
from dsvlp.data.synthetic.world import (
    CLASSES,
    COLOURS,
    INVERSE,
    SHAPES,
    Scene,
    Shape,
    World,
    relations,
)

_TOWARDS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
ANSWERS = ("yes", "no", *COLOURS, *SHAPES, *NUMBERS[1:5])


@dataclass(frozen=True)
class Question:
    """A question about one picture; the answer is one of `ANSWERS`."""

    text: str
    answer: str


@dataclass(frozen=True)
class Statement:
    """A statement about a left and a right picture, as in NLVR2."""

    text: str
    true: bool


def questions(world: World, scene: Scene) -> list[Question]:
    """Returns one question of each kind that the scene allows: presence, number, colour, shape, relation."""
    draws = Draws(world.key(scene.index, "questions"))
    asked = [
        _presence(scene, draws),
        Question("how many shapes are there?", NUMBERS[len(scene.shapes)]),
        *_attribute(scene, draws, "what colour is the {}?", attrgetter("kind"), attrgetter("colour")),
        *_attribute(scene, draws, "what shape is {}?", attrgetter("colour"), attrgetter("kind")),
    ]
    return asked if len(scene.shapes) == 1 else [*asked, *_relation(scene, draws)]


def statement(world: World, left: Scene, right: Scene) -> Statement:
    """Returns a statement about two pictures; `left.index` is even. One of each two is true."""
    draws = Draws(world.key(left.index, "statement"))
    number = left.index // 2
    coin = Draws(world.key(number // 2, "statement truth")).uniform() < 0.5
    true = coin != bool(number % 2)  # one of each two
    kinds: list[Callable[[Scene, Scene, bool, Draws], str]] = [_shows, _total, _relates, _compares]
    texts = (kind(left, right, true, draws) for kind in draws.shuffled(kinds))
    return Statement(next(text for text in texts if text), true)  # `_shows` always has one


def _presence(scene: Scene, draws: Draws) -> Question:
    """Asks for a coloured shape; an absent one has the colour or the kind of one that is there."""
    shape = draws.choice(scene.shapes)
    if draws.uniform() < 0.5:
        return Question(f"is there {indefinite(noun(shape))}?", "yes")
    colour, kind = CLASSES[_absent(shape, scene.shapes, draws)]
    return Question(f"is there {indefinite(f'{colour} {kind}')}?", "no")


def _absent(shape: Shape, shapes: Sequence[Shape], draws: Draws) -> int:
    """Returns a class like `shape`'s in colour or in kind that none of `shapes` has."""
    there = {other.label for other in shapes}
    like = [
        label
        for label, (colour, kind) in enumerate(CLASSES)
        if label not in there and (colour == shape.colour) != (kind == shape.kind)
    ]
    return draws.choice(like)


def _attribute(
    scene: Scene, draws: Draws, template: str, given: Callable[[Shape], str], asked: Callable[[Shape], str]
) -> list[Question]:
    """Asks for one attribute of the shape that the other tells apart; nothing where none does."""
    named = [given(shape) for shape in scene.shapes]
    alone = [shape for shape in scene.shapes if named.count(given(shape)) == 1]
    if not alone:
        return []
    shape = draws.choice(alone)
    return [Question(template.format(given(shape)), asked(shape))]


def _relation(scene: Scene, draws: Draws) -> list[Question]:
    """Asks whether a relation holds between the first two shapes, and for the shape of one by its place."""
    first, second = draws.shuffled(scene.shapes[:2])
    words = draws.choice(relations(first, second))
    yes = draws.uniform() < 0.5
    said = words if yes else INVERSE[words]
    asked = [Question(f"is the {noun(first)} {said} the {noun(second)}?", "yes" if yes else "no")]
    place = next(words for words in relations(first, second) if words in _TOWARDS)
    if sum(_is_towards(place, shape, second) for shape in scene.shapes) == 1:
        asked.append(Question(f"what shape is {place} the {noun(second)}?", first.kind))
    return asked


def _is_towards(place: str, shape: Shape, other: Shape) -> bool:
    """Returns whether `shape` lies in that direction at all, a diagonal included."""
    down, right = _TOWARDS[place]
    return down * (shape.cell[0] - other.cell[0]) + right * (shape.cell[1] - other.cell[1]) > 0


def _shows(left: Scene, right: Scene, true: bool, draws: Draws) -> str:
    """Says that one side shows a coloured shape; where false, by preference one of the other side."""
    side, scene, other = draws.choice((("left", left, right), ("right", right, left)))
    if true:
        return f"the {side} picture shows {indefinite(noun(draws.choice(scene.shapes)))}"
    there = {shape.label for shape in scene.shapes}
    elsewhere = [shape for shape in other.shapes if shape.label not in there]
    if elsewhere:
        return f"the {side} picture shows {indefinite(noun(draws.choice(elsewhere)))}"
    colour, kind = CLASSES[_absent(draws.choice(scene.shapes), scene.shapes, draws)]
    return f"the {side} picture shows {indefinite(f'{colour} {kind}')}"


def _total(left: Scene, right: Scene, true: bool, draws: Draws) -> str:
    """Says how many shapes both pictures hold; where false, one too many or too few."""
    count = len(left.shapes) + len(right.shapes)
    near = [number for number in (count - 1, count + 1) if 2 <= number < len(NUMBERS)]
    said = count if true else draws.choice(near)
    return f"there are {NUMBERS[said]} shapes in both pictures"


def _relates(left: Scene, right: Scene, true: bool, draws: Draws) -> str:
    """Says that a picture has a shape in a relation to another; where false, the relation is turned round."""
    scenes = [scene for scene in (left, right) if len(scene.shapes) > 1]
    if not scenes:
        return ""
    first, second = draws.shuffled(draws.choice(scenes).shapes[:2])
    words = draws.choice(relations(first, second))
    said = words if true else INVERSE[words]
    text = f"{indefinite(noun(first))} is {said} {indefinite(noun(second))} in one picture"
    holds = any(
        said in relations(a, b) and (a.label, b.label) == (first.label, second.label)
        for scene in (left, right)
        for a in scene.shapes
        for b in scene.shapes
    )
    return text if holds == true else ""


def _compares(left: Scene, right: Scene, true: bool, draws: Draws) -> str:
    """Says that both pictures show something of one colour, or of one shape.

    Nothing unless a true and a false one could be said: else its being said would tell its truth.
    """
    attribute = draws.choice(("colour", "kind"))
    here, there = ({getattr(shape, attribute) for shape in scene.shapes} for scene in (left, right))
    if not here & there or not here ^ there:
        return ""
    word = draws.choice(sorted(here & there if true else here ^ there))
    return f"both pictures show {indefinite(f'{word} shape' if attribute == 'colour' else word)}"
