"""Things of one size go together, so that nothing is ever padded."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def alike(sizes: Sequence[Hashable]) -> list[list[int]]:
    """Returns the places of equal sizes, size by size in the order of first appearance."""
    groups: dict[Hashable, list[int]] = {}
    for place, size in enumerate(sizes):
        groups.setdefault(size, []).append(place)
    return list(groups.values())
