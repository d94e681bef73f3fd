"""Texts cut to the longest of their micro-batch: padding behind it is computed for nothing.

Nothing else changes: masks hide padding from every other token, and draws belong to keys and places. With
dropout, whose masks are drawn for the whole tensor, other tokens are dropped than without the cut.

Legend: T texts, L tokens.
"""

from __future__ import annotations

from dataclasses import replace

from dsvlp.types import Batch

MULTIPLE = 8  # of tokens: few lengths for a compiler, whole tiles for a GPU


def shortened(batch: Batch) -> Batch:
    """Returns a micro-batch whose texts end where its longest does, rounded up to a multiple of 8 tokens.

    Args:
        batch: on the CPU, so that nothing waits for a device; without fetched texts.
    """
    assert batch.fetched is None, "fetched texts have the full length"
    longest = int(batch.text_mask.any(0).sum())
    length = -(-longest // MULTIPLE) * MULTIPLE
    if length >= batch.text_ids.shape[1]:
        return batch
    cut = {name: getattr(batch, name)[:, :length] for name in ("text_ids", "text_mask", "special_mask")}
    return replace(batch, **{name: tensor.contiguous() for name, tensor in cut.items()})
