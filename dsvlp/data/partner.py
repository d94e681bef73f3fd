"""ITM's partners: whose text replaces a pair's own, chosen in the global batch.

Pure functions of a key (a hash of seed and step), so that neither the rank nor the cut into
micro-batches changes a choice.
"""

from __future__ import annotations

import numpy as np

from dsvlp.seed import bits, integers

_TRIES = 64


def partners(key: int, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a permutation of the batch that leads every pair to another image.

    The pairs are put in a random ring and each takes its successor; a pair whose successor shows the
    same image exchanges partners with a drawn position where both then differ, at most 64 draws a
    pair.

    Args:
        key: hash of (seed, step).
        images: int64 [P], equal where two pairs show the same image.

    Returns:
        (partner int64 [P], found bool [P]); `found` is False where all draws failed (a batch with
        too few different images): the pair must then stay matched.
    """
    count = len(images)
    ring = shuffled(key, "partner.ring", count)
    partner = np.empty(count, np.int64)
    partner[ring] = np.roll(ring, -1)
    for position in np.flatnonzero(images == images[partner]):
        if images[position] != images[partner[position]]:
            continue  # an earlier exchange has mended it
        draws = integers(np.array([key ^ int(position)]), "partner.redraw", _TRIES, count)[0]
        mends = (images[partner[draws]] != images[position]) & (images[partner[position]] != images[draws])
        if mends.any():
            other = draws[mends.argmax()]
            partner[[position, other]] = partner[[other, position]]
    return partner, images != images[partner]


def mismatched_half(key: int, count: int) -> np.ndarray:
    """Returns bool [count]: which positions get another's text, exactly half (rounded down)."""
    out = np.zeros(count, bool)
    out[shuffled(key, "partner.matched", count)[: count // 2]] = True
    return out


def shuffled(key: int, purpose: str, count: int) -> np.ndarray:
    """Returns 0 .. count-1 in an order drawn from the key, int64 [count]."""
    return np.argsort(bits(np.array([key]), purpose, count)[0], kind="stable")
