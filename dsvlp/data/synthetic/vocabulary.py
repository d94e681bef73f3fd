"""The world's words as a WordPiece vocabulary: the same for every seed and size, whole words, 128 at most.

A vocabulary trained to 128 entries spends them on the steps between letters and words and cuts
"orange" in three; here each word that the world says is one token, and letters spell any other.
"""

from __future__ import annotations

import string
from pathlib import Path

from dsvlp.data.synthetic.questions import NUMBERS
from dsvlp.data.synthetic.world import COLOURS, SHAPES, SIZES

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    *COLOURS,
    *SHAPES,
    *SIZES,
    *NUMBERS[1:],
    *["a", "an", "the", "of", "at", "on", "in", "and", "is", "are", "there"],
    *["left", "right", "above", "below", "top", "bottom", "middle", "bigger", "smaller", "than"],
    *["how", "many", "what", "colour", "shape", "shapes", "picture", "pictures", "show", "shows", "both"],
    "?",
)


def write_vocabulary(path: Path) -> Path:
    """Writes the vocabulary as a `vocab.txt` that `Tokenizer.load` reads; returns `path`."""
    letters = [letter for letter in string.ascii_lowercase if letter not in WORDS]
    tokens = (*SPECIALS, *WORDS, *letters, *(f"##{letter}" for letter in string.ascii_lowercase))
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return path
