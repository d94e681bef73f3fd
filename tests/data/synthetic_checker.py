"""Reads a caption, question or statement and holds it against what was drawn, by geometry alone.

Knows nothing of the generator but its words: positions come from the boxes, sizes from the boxes'
longer side, colours and shapes from the label table's names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

NOUN = r"(?:an?|the) (?:(big|small) )?(\w+) (circle|square|triangle|star|cross|diamond)"
PLACE = r"(?:at the (?:top|bottom)(?: left| right)?|on the (?:left|right)|in the middle)(?! of)"
RELATION = r"(?:on the )?(left|right) of|(above|below)|(bigger|smaller) than"
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]


@dataclass(frozen=True)
class Seen:
    """A drawn shape as its box and class show it."""

    colour: str
    kind: str
    size: str
    x: float
    y: float


def seen(boxes: np.ndarray, names: list[str], image_size: int) -> list[Seen]:
    """Returns what the boxes say; a big shape's longer side is above 0.195 of the picture's."""
    out = []
    for (x0, y0, x1, y1), name in zip(boxes / image_size, names, strict=True):
        colour, kind = name.split()
        size = "big" if max(x1 - x0, y1 - y0) > 0.195 else "small"
        out.append(Seen(colour, kind, size, (x0 + x1) / 2, (y0 + y1) / 2))
    return out


def holds(relation: str, a: Seen, b: Seen) -> bool:
    """Returns whether `a` lies so to `b`; a direction holds where it is the longer way."""
    right, down = b.x - a.x, b.y - a.y
    return {
        "left": right > abs(down),
        "right": -right > abs(down),
        "above": down > abs(right),
        "below": -down > abs(right),
        "bigger": (a.size, b.size) == ("big", "small"),
        "smaller": (a.size, b.size) == ("small", "big"),
    }[relation]


def place_holds(place: str, a: Seen) -> bool:
    """Returns whether a shape lies in that third of the picture."""
    words = set(re.findall("top|bottom|left|right", place))
    across = {"left"} if a.x < 0.35 else {"right"} if a.x > 0.65 else set()
    along = {"top"} if a.y < 0.35 else {"bottom"} if a.y > 0.65 else set()
    return words == across | along


def named(match: tuple[str, str, str], shapes: list[Seen]) -> list[Seen]:
    """Returns the shapes that a noun phrase fits."""
    size, colour, kind = match
    return [s for s in shapes if (s.colour, s.kind) == (colour, kind) and size in ("", s.size)]


def caption_true(text: str, shapes: list[Seen]) -> bool:
    """Returns whether a caption holds; raises `ValueError` where it says nothing that can be checked."""
    mentioned = [named(match, shapes) for match in re.findall(NOUN, text)]
    if not mentioned or len(mentioned) > 2:
        raise ValueError(text)
    if any(len(found) != 1 for found in mentioned):
        return False
    objects = [found[0] for found in mentioned]
    places = re.findall(PLACE, text)
    relations = [next(filter(None, groups)) for groups in re.findall(RELATION, text)]
    if len(places) != (0 if relations else len(objects)) or not (places or relations):
        raise ValueError(text)
    if relations:
        return all(holds(relation, objects[0], objects[1]) for relation in relations)
    return all(place_holds(place, thing) for place, thing in zip(places, objects, strict=True))


def answer_of(question: str, shapes: list[Seen]) -> str:
    """Returns the answer to a question; raises `ValueError` where it has not exactly one."""
    nouns = [named(match, shapes) for match in re.findall(NOUN, question)]
    relation = next((next(filter(None, groups)) for groups in re.findall(RELATION, question)), "")
    if question.startswith("how many shapes"):
        return NUMBERS[len(shapes)]
    if question.startswith("is there"):
        return "yes" if nouns[0] else "no"
    if question.startswith("is the"):
        return "yes" if holds(relation, nouns[0][0], nouns[1][0]) else "no"
    if question.startswith("what colour is the"):
        answers = [s.colour for s in shapes if s.kind in question]
    elif relation:
        answers = [s.kind for s in shapes if s is not nouns[0][0] and holds(relation, s, nouns[0][0])]
    else:
        answers = [s.kind for s in shapes if s.colour in question.rstrip("?").split()]
    if len(answers) != 1:
        raise ValueError(f"{question}: {answers}")
    return answers[0]


def statement_true(text: str, left: list[Seen], right: list[Seen]) -> bool:
    """Returns whether a statement about two pictures holds; raises `ValueError` for an unknown form."""
    nouns = re.findall(NOUN, text)
    relation = next((next(filter(None, groups)) for groups in re.findall(RELATION, text)), "")
    if match := re.fullmatch(r"there are (\w+) shapes in both pictures", text):
        return NUMBERS.index(match[1]) == len(left) + len(right)
    if match := re.match(r"the (left|right) picture shows", text):
        return bool(named(nouns[0], left if match[1] == "left" else right))
    if match := re.fullmatch(r"both pictures show an? (\w+)( shape)?", text):
        return all(any(match[1] in (s.colour, s.kind) for s in shapes) for shapes in (left, right))
    if not relation or len(nouns) != 2:
        raise ValueError(text)
    return any(
        holds(relation, a, b)
        for shapes in (left, right)
        for a in named(nouns[0], shapes)
        for b in named(nouns[1], shapes)
    )
