"""Activation checkpointing of a stack of blocks: what is dropped after forward is computed again in backward.

* `none`: every activation is kept.
* `selective`: every second block is recomputed. About half of the blocks' memory for a sixth more
  computation; "every n-th layer" in torchtitan's terms.
* `full`: every block is recomputed; of each only its input is kept. A third more computation.

Nothing inside a block draws from an explicit generator, so recomputation repeats the same dropout
(torch restores the default generator's state), and losses and gradients are bit for bit the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Mode = Literal["none", "selective", "full"]


def run_block(block: Any, index: int, mode: Mode, *inputs: Any) -> Any:
    """Returns `block(*inputs)`, block `index` of its stack, recomputed in backward where `mode` says so."""
    kept = mode == "none" or (mode == "selective" and index % 2 == 1)
    if kept or not torch.is_grad_enabled():
        return block(*inputs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(block)

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_kept(block: Any) -> Iterator[None]:
    """Keeps BatchNorm from counting a batch twice: recomputation must not update its statistics."""
    modules = block.modules() if isinstance(block, nn.Module) else ()  # a function has none of its own
    norms = [m for m in modules if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
