"""Captions of a scene: short, lower-case, true, with the phrases that name shapes.

The words are few on purpose: a WordPiece vocabulary of 128 holds them. A caption that names two related
shapes tells a held-out scene from every other; a caption that names one shape is for training alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from dsvlp.data.synthetic.draws import Draws
from dsvlp.data.synthetic.world import COLOURS, Scene, Shape, World, relations

CAPTIONS = 5
RELATION_SWAPS = {"left": "right", "right": "left", "above": "below", "below": "above"}
PLACES = {
    (0, 0): "at the top left", (0, 1): "at the top", (0, 2): "at the top right",
    (1, 0): "on the left", (1, 1): "in the middle", (1, 2): "on the right",
    (2, 0): "at the bottom left", (2, 1): "at the bottom", (2, 2): "at the bottom right",
}  # fmt: skip
_PHRASINGS = {
    "left of": ("left of", "on the left of"),
    "right of": ("right of", "on the right of"),
    "above": ("above",),
    "below": ("below",),
}
_SIZES = ("bigger than", "smaller than")


@dataclass(frozen=True)
class Phrase:
    """The characters `start` to `end` of a text that name shape number `shape` of the scene."""

    shape: int
    start: int
    end: int


@dataclass(frozen=True)
class Text:
    """A caption and its phrases, in the order of the text."""

    text: str
    phrases: tuple[Phrase, ...]


Part = str | tuple[int, str]  # words, or (shape, noun phrase)


def compose(parts: Sequence[Part]) -> Text:
    """Returns the parts joined by blanks, with the spans of those that name a shape."""
    text, phrases = "", []
    for part in parts:
        text += " " if text else ""
        words = part if isinstance(part, str) else part[1]
        if not isinstance(part, str):
            phrases.append(Phrase(part[0], len(text), len(text) + len(words)))
        text += words
    return Text(text, tuple(phrases))


def noun(shape: Shape, sized: bool = False) -> str:
    """Returns "red circle", or "big red circle"."""
    return f"{shape.size} {shape.colour} {shape.kind}" if sized else f"{shape.colour} {shape.kind}"


def indefinite(words: str) -> str:
    """Returns the words after "a" or "an"."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def colour_words() -> tuple[str, ...]:
    """Returns the words that only the picture can tell: masked-language accuracy on them is a test."""
    return tuple(COLOURS)


def captions(world: World, scene: Scene) -> list[Text]:
    """Returns `CAPTIONS` different captions, all true of the scene.

    A held-out scene's captions name its first two shapes and how they lie, so that no two of the first
    `len(world.pairs("heldout"))` held-out scenes share one; in a world of single shapes they name place
    and size.
    """
    draws = Draws(world.key(scene.index, "captions"))
    if len(scene.shapes) == 1:
        return draws.shuffled(list(_single(scene, 0, world.split == "train")))[:CAPTIONS]
    related = [(0, 1), (1, 0)] if world.split == "heldout" else _related(scene)
    relation = draws.shuffled([text for pair in related for text in relation_captions(scene, *pair)])
    other = draws.shuffled([text for pair in related for text in _detailed(scene, *pair)])
    if world.split == "heldout":
        return relation[:3] + other[:2]
    shape = draws.below(len(scene.shapes))
    return relation[:3] + other[:1] + draws.shuffled(list(_single(scene, shape, True)))[:1]


def relation_captions(scene: Scene, first: int, second: int) -> Iterator[Text]:
    """Yields captions that state how shape `first` lies to shape `second`; one word of each says it."""
    a, b = scene.shapes[first], scene.shapes[second]
    phrasings = [words for relation in relations(a, b) for words in _PHRASINGS.get(relation, ())]
    for words, sized, verb in product(phrasings, (False, True), ("", "is", "there is")):
        left = (first, indefinite(noun(a, sized)))
        right = (second, indefinite(noun(b, sized)))
        lead: list[Part] = ["there is", left] if verb == "there is" else [left, verb] if verb else [left]
        yield compose([*lead, words, right])


def _related(scene: Scene) -> list[tuple[int, int]]:
    """Returns the ordered pairs of shapes that are not diagonal to each other."""
    numbers = range(len(scene.shapes))
    return [
        (i, j)
        for i, j in product(numbers, numbers)
        if i != j and any(relation in _PHRASINGS for relation in relations(scene.shapes[i], scene.shapes[j]))
    ]


def _detailed(scene: Scene, first: int, second: int) -> Iterator[Text]:
    """Yields captions that say where both shapes are, or how they compare in place and size."""
    a, b = scene.shapes[first], scene.shapes[second]
    for sized in (False, True):
        yield compose(
            [
                (first, indefinite(noun(a, sized))),
                PLACES[a.cell],
                "and",
                (second, indefinite(noun(b, sized))),
                PLACES[b.cell],
            ]
        )
    places = [words for relation in relations(a, b) for words in _PHRASINGS.get(relation, ())[:1]]
    for size in [relation for relation in relations(a, b) if relation in _SIZES]:
        subject, other = (first, indefinite(noun(a))), (second, indefinite(noun(b)))
        yield compose([subject, size, "and", *places, other])
        yield compose([subject, "is", *places, "and", size, other])


def _single(scene: Scene, number: int, brief: bool) -> Iterator[Text]:
    """Yields captions of one shape; those that say less than size and place only where `brief`."""
    shape = scene.shapes[number]
    place = PLACES[shape.cell]
    for sized in (False, True) if brief else (True,):
        name = (number, indefinite(noun(shape, sized)))
        yield compose([name, place])
        yield compose(["there is", name, place])
        yield compose([name, "is", place])
        yield compose([place, "is", name])
        yield compose([place, "there is", name])
