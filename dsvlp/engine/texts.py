"""Texts cut to the longest of their micro-batch: padding behind it is computed for nothing.

Nothing else changes: masks hide padding from every other token, and draws belong to keys and places. With
dropout, whose masks are drawn for the whole tensor, other tokens are dropped than without the cut.

Legend: T texts, F fetched texts, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dsvlp.types import Batch, Fetched

MULTIPLE = 8  # of tokens: few lengths for a compiler, whole tiles for a GPU
_FIELDS = ("text_ids", "text_mask", "special_mask")


def shortened(batches: list[Batch], agree: Callable[[list[int]], list[int]] = list) -> list[Batch]:
    """Returns a step's micro-batches, their texts cut to each one's longest, a multiple of 8 tokens.

    Args:
        batches: on the CPU, so that nothing waits for a device; their own and fetched texts of one length.
        agree: what makes of the lengths those of all ranks, where they read each other's texts.
    """
    return [
        cut(batch, length) for batch, length in zip(batches, agree([*map(longest, batches)]), strict=True)
    ]


def longest(batch: Batch) -> int:
    """Returns the tokens of a micro-batch's longest text, own or fetched, rounded up to a multiple of 8."""
    masks = [batch.text_mask] if batch.fetched is None else [batch.text_mask, batch.fetched.text_mask]
    return -(-max(int(mask.any(0).sum()) for mask in masks) // MULTIPLE) * MULTIPLE


def cut(batch: Batch, length: int) -> Batch:
    """Returns a micro-batch with its own and fetched texts' first `length` tokens, [T, L] and [F, L]."""
    if length >= batch.text_ids.shape[1]:
        return batch
    fetched = batch.fetched and replace(batch.fetched, **_first(batch.fetched, length))
    return replace(batch, **_first(batch, length), fetched=fetched)


def _first(texts: Batch | Fetched, length: int) -> dict[str, Any]:
    return {name: getattr(texts, name)[:, :length].contiguous() for name in _FIELDS}
