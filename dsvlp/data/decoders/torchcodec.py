"""Decodes by torchcodec, to which torchvision leaves its decoders from 0.29 on: nvJPEG, a list a call."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import torch
from torch import Tensor
from torchcodec.decoders import decode_jpeg


class Torchcodec:
    """Decodes by `torchcodec.decoders.decode_jpeg` (torchcodec 0.16 or later).

    Args:
        device: the GPU.
    """

    name = f"torchcodec {version('torchcodec')}"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def decode(self, jpegs: Sequence[Tensor]) -> list[Tensor | None]:
        """Returns RGB uint8 [3, H, W] for each; raises RuntimeError where one of them is bad."""
        return list(decode_jpeg(list(jpegs), mode="RGB", device=self.device))
