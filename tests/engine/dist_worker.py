"""One rank of the collectives' test: `dist_worker.py gather FOLDER`; rank 0 writes what all ranks found."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as td

from dsvlp import dist
from dsvlp.launch.local import leave


def own_rows(rank: int) -> torch.Tensor:
    """Returns a rank's rows [2, 3, 5]: numbers that bf16 rounds."""
    return torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(rank))


def weights(rank: int, world: int) -> torch.Tensor:
    """Returns by what a rank's loss weighs all rows, [world x 2, 3, 5]."""
    return torch.randn(2 * world, 3, 5, generator=torch.Generator().manual_seed(100 + rank))


if __name__ == "__main__":
    td.init_process_group("gloo")
    rank, world = dist.rank(), dist.world_size()
    found = {}
    for sent_as in (None, torch.bfloat16):
        rows = own_rows(rank).requires_grad_()
        gathered = dist.gather_with_gradient(rows, sent_as)
        (gathered * weights(rank, world)).sum().backward()
        found[str(sent_as)] = (gathered.detach(), rows.grad)
    group = dist.side_group(60)
    every = dist.gather_objects((found, dist.agreed_most([rank, -rank, 7], group)))
    if rank == 0:
        torch.save(every, Path(sys.argv[2]) / "found.pt")
    dist.barrier(60)
    leave(0)
