"""Decodes by torchvision's CUDA build: nvJPEG, on the hardware engine where the GPU has one.

One mutex and one stream of its own serve the whole process. It waits for that stream before and after a
list, but not for the caller's, whose memory it decodes into: that is the caller's duty (`dsvlp.data.lane`).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import torch
from torch import Tensor

import dsvlp.vision  # noqa: F401  torchvision may need its shim

from torchvision.io import decode_jpeg  # isort: skip


class Torchvision:
    """Decodes by `torchvision.io.decode_jpeg`.

    Args:
        device: the GPU.
    """

    name = f"torchvision {version('torchvision')}"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def decode(self, jpegs: Sequence[Tensor]) -> list[Tensor | None]:
        """Returns RGB uint8 [3, H, W] for each; raises RuntimeError where one of them is bad."""
        return list(decode_jpeg(list(jpegs), mode="RGB", device=self.device))
