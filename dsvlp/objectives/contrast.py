"""Which pairs stand beside a pair to be told apart from it: those of its micro-batch, or of all ranks'.

Legend: P pairs of this rank, K columns: pairs of the contrastive batch, L text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsvlp import dist, seed
from dsvlp.types import Batch


@dataclass(frozen=True)
class Columns:
    """The pairs of a contrastive batch, in the order of the global batch.

    Attributes:
        pairs: int64 [K, 2] (image row, text row) as `Passes.ask` numbers them; through all ranks where
            they are gathered.
        images: int64 [K] image rows in the data set: two columns of one image are never negatives.
        texts: int64 [K], equal where the texts' ids are equal.
        keys: int64 [K] pair keys.
        counts: bool [K], False at pairs of weight 0.
        first: column of this rank's first pair.
        own: how many columns from there on are this rank's, P.
    """

    pairs: Tensor
    images: Tensor
    texts: Tensor
    keys: Tensor
    counts: Tensor
    first: int
    own: int

    @property
    def targets(self) -> Tensor:
        """Returns each own pair's column, int64 [P]."""
        return torch.arange(self.first, self.first + self.own, device=self.images.device)

    def mine(self, values: Tensor) -> Tensor:
        """Returns this rank's rows [P, ...] of one value a column [K, ...]."""
        return values[self.first : self.first + self.own]

    def same_image(self) -> Tensor:
        """Returns bool [P, K]: the column shows the own pair's image; the own column among them."""
        return self.mine(self.images)[:, None] == self.images

    def negatives(self, same_image: bool) -> Tensor:
        """Returns bool [P, K]: the column counts and shows another image.

        Args:
            same_image: any other column than the own one counts.
        """
        if not same_image:
            return ~self.same_image() & self.counts
        places = torch.arange(len(self.images), device=self.images.device)
        return (self.targets[:, None] != places) & self.counts


def columns(view: Batch, gathered: bool) -> Columns:
    """Returns the columns of a micro-batch; where `gathered`, of those of all ranks, who then must all call.

    Args:
        view: a batch with the image rows of its data set.
        gathered: the contrastive batch is that of all ranks.
    """
    assert view.rows is not None, "the loader names the image rows"
    image, text = view.pairs.unbind(1)
    parts = (
        image,
        text,
        view.rows[image],
        text_hash(view.text_ids, view.text_mask)[text],
        view.pair_keys,
        (view.weight > 0).long(),
    )
    table = torch.stack(parts)  # [6, P]
    rank, tables = 0, table[None]
    if gathered:
        rank, tables = dist.rank(), dist.all_gather(table)
    ranks = torch.arange(len(tables), device=table.device)[:, None]
    images, texts, *rest = tables.unbind(1)
    rows = torch.stack((images + ranks * len(view.images), texts + ranks * len(view.text_ids)), -1)
    rows_of_data, hashes, keys, counts = (part.flatten() for part in rest)
    pairs = len(view.pairs)
    return Columns(rows.flatten(0, 1), rows_of_data, hashes, keys, counts > 0, rank * pairs, pairs)


def text_hash(ids: Tensor, mask: Tensor) -> Tensor:
    """Returns int64 [T] of ids and mask [T, L]: equal for texts of equal ids, whatever their padding."""
    places = torch.arange(ids.shape[1], device=ids.device)
    return torch.where(mask, seed.fold(ids, places), 0).sum(1)
