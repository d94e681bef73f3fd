"""VQA's answers in the form in which its official evaluation compares them.

Punctuation goes, capitals, articles; number words become digits; contractions get their apostrophe. ViLT and
METER count the answers of their tables in this form. Written anew from what the public evaluation does
(VQA, `vqaEval.py`), with what looks odd in it, because a class that it would spell otherwise is never right:
a sign between two letters becomes a space, unless it also stands beside a space or the answer has a comma
between digits; a point stays before a digit alone; "none" is "0"; "im" stays, as only "Im" was listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_POINT = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_ARTICLES = frozenset({"a", "an", "the"})
_COUNTED = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_COUNTED.split())}

# Contractions that are known without their apostrophe, by what follows it. Where it would make another word
# ("well", "its", "shed"), there is none.
_FOLLOWED_BY = {
    "ve": "could might must not should they we what where who would you",
    "d": "he how it someone something there they where who you",
    "ll": "how it somebody someone something they what who why you",
    "s": "he how somebody someone that there what when where who why",
    "re": "there they what why you",
}
_NOT = "ai are ca could did does do had has have is might must need ought sha should was were wo would"
_D_HAVE = "he it she somebody someone something there they we who you"  # they'd've
_NOT_HAVE = "could had might should would"  # couldn't've
_SPECIAL = {
    "maam": "ma'am",
    "oclock": "o'clock",
    "twas": "'twas",
    "somebody'd": "somebodyd",  # so it is
    "yall": "y'all",
    **dict.fromkeys(("yall'll", "y'allll"), "y'all'll"),
    **dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've"),
    **dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at"),
}


def normalised(answer: str) -> str:
    """Returns an answer as the evaluation spells it; nothing may be left: VQA's table has an empty answer."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    vanish = _COMMA_IN_NUMBER.search(text) is not None
    without = text
    for sign in _SIGNS:
        gone = vanish or f"{sign} " in text or f" {sign}" in text
        without = without.replace(sign, "" if gone else " ")
    words = (_NUMBERS.get(word, word) for word in _POINT.sub("", without).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _contractions() -> Iterator[tuple[str, str]]:
    for end, words in _FOLLOWED_BY.items():
        yield from ((f"{word}{end}", f"{word}'{end}") for word in words.split())
    yield from ((f"{word}nt", f"{word}n't") for word in _NOT.split())
    for words, middle in ((_D_HAVE, ("d", "'d")), (_NOT_HAVE, ("nt", "n't"))):
        bare, marked = middle
        for word in words.split():
            full = f"{word}{marked}'ve"
            yield from ((f"{word}{bare}'ve", full), (f"{word}{marked}ve", full))


_CONTRACTIONS = dict(_contractions()) | _SPECIAL
