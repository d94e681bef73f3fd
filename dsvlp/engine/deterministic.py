"""`engine.deterministic`: the same kernels give the same bits, on a GPU too.

On a CPU every step is deterministic as it is. On a GPU some backwards add in an order that changes from run
to run (embeddings, indexed sums, attention, convolutions): torch then takes slower ones that do not, and
raises where it has none. Cross-device sums keep their order on the same layout.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may choose another split of a sum


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Makes torch's operations deterministic until it is left; does nothing where that is not wanted.

    Enter it before the first operation on a GPU: cuBLAS reads its environment once.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault(*_WORKSPACE)
    settings: Any = torch.utils.deterministic  # a module whose attribute mypy does not see
    before, filled = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # nothing here reads what it has not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = filled
