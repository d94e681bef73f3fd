"""Poolers, and the joint feature of two streams: text first, then image (FIBER, 1.5; METER has the same).

Legend: B pairs, L text tokens, N image tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Pooler(nn.Module):
    """A Linear and a tanh: of a first token, or of a mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        """Returns [B, D] of [B, D]."""
        return torch.tanh(self.dense(states))


def joint_feature(text_pooler: nn.Module, image_pooler: nn.Module, text: Tensor, image: Tensor) -> Tensor:
    """Returns [B, 2 D]: the first text token's feature, then that of the image tokens' mean.

    Args:
        text: [B, L, D].
        image: [B, N, D]; every token counts.
    """
    return torch.cat((text_pooler(text[:, 0]), image_pooler(image.mean(1))), -1)
