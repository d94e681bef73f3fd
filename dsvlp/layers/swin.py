"""timm's Swin blocks: window attention in one fused call, drop path, the block with a cross-attention inside.

Legend: B images, W windows of an image, H heads, n cells of a window, N = h * w cells, C width of the stage,
L text tokens, D text width.
"""

from __future__ import annotations

import dsvlp.vision  # noqa: F401  # isort: skip
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from torch import Tensor, nn

from dsvlp.layers.gated import GatedCrossAttention


class MaskedWindowAttention(WindowAttention):
    """timm's window attention by scaled-dot-product attention.

    Windows of an image stand beside its heads, so that one mask of relative positions and shifts
    [1, W * H, n, n] serves every image; timm's own fused form repeats it for each image, 40 MB at 384
    pixels in the first stage.

    On a CPU in bf16 with gradients the plain form is taken: the fused kernel has no gradient for a mask
    there, and what torch does in its place takes 1.1 to 2.7 times the CPU time, the whole module counted.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns [B * W, n, C] of windows [B * W, n, C], image by image; mask float [W, n, n] or None."""
        cells, windows = x.shape[1], 1 if mask is None else len(mask)
        qkv = self.qkv(x).view(-1, windows, cells, 3, self.num_heads, x.shape[2] // self.num_heads)
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3)  # 3 x [B, W * H, n, C / H]
        bias = self._get_rel_pos_bias()  # [1, H, n, n]
        if mask is not None:
            bias = (bias + mask[:, None]).flatten(0, 1)[None]  # [1, W * H, n, n]
        attend = _plain if _fused_is_slower(query) else F.scaled_dot_product_attention
        mixed = attend(query, key, value, attn_mask=bias.to(query.dtype))
        mixed = mixed.unflatten(1, (windows, self.num_heads)).transpose(2, 3)  # [B, W, n, H, C / H]
        out: Tensor = self.proj(mixed.reshape(x.shape))
        return out


class DropPath(nn.Module):
    """Drops a branch of whole rows in training, as timm's, whose rate is a number of Python.

    Here it is a tensor: rates rise from block to block, and one compiled graph serves them all.

    Args:
        rate: share of rows that lose the branch; the others' is scaled up.
    """

    keep: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.register_buffer("keep", torch.tensor(1.0 - rate), persistent=False)

    def forward(self, branch: Tensor) -> Tensor:
        """Returns the branch [B, ...], zero where it is dropped."""
        if not self.training:
            return branch
        uniform = torch.rand(len(branch), *[1] * (branch.ndim - 1), device=branch.device)
        return branch * ((uniform < self.keep) / self.keep).to(branch.dtype)


def _fused_is_slower(query: Tensor) -> bool:
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and torch.is_grad_enabled()


def _plain(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor) -> Tensor:
    """Returns scaled-dot-product attention [B, H, n, C / H] by two matrix products and a softmax."""
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2) + attn_mask
    return scores.softmax(-1).to(value.dtype) @ value


def fused_block(
    block: SwinTransformerBlock, cross: GatedCrossAttention, grid: Tensor, text: Tensor, mask: Tensor
) -> Tensor:
    """Returns the grid [B, h, w, C] after a block whose self-attention's output reads the text (FIBER, 1.2).

    The cross-attention knows no positions, so it needs no windows: on the un-windowed output it is
    what the official code computes window by window, and the text's keys are made once an image.

    Args:
        grid: [B, h, w, C], the block's input.
        text: [B, L, D], as it is before the text layer of this pair.
        mask: bool [B, L].
    """
    size = grid.shape[1:3]
    attended = block._attn(block.norm1(grid)).flatten(1, 2)  # [B, N, C]
    cells = grid.flatten(1, 2) + block.drop_path1(cross(attended, text, mask))
    cells = cells + block.drop_path2(block.mlp(block.norm2(cells)))
    return cells.unflatten(1, size)
