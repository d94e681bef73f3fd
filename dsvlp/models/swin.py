"""The image tower of FIBER and METER: timm's SwinTransformer, driven block by block (FIBER, 1.1).

Legend: I images, h x w grid of a stage, N = h * w, C its width.
"""

from __future__ import annotations

import math

from timm.layers import DropPath as TimmDropPath
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, SwinTransformerStage
from torch import Tensor, nn

from dsvlp.errors import RecipeError
from dsvlp.layers.recompute import Mode, run_block
from dsvlp.layers.swin import DropPath, MaskedWindowAttention
from dsvlp.models.pretrained import load_swin
from dsvlp.recipe import Swin

BASE_WIDTH = 128  # of Swin-Base's first stage, for which timm's deviation of 0.02 is meant


class SwinTower(SwinTransformer):
    """timm's blocks under timm's names; blocks are counted through all stages, from 0.

    Attributes:
        width: of the last stage.
        checkpointing: which blocks are recomputed in backward.
    """

    checkpointing: Mode = "none"

    def __init__(self, table: Swin, image_size: int) -> None:
        super().__init__(
            img_size=image_size,
            patch_size=table.patch_size,
            num_classes=0,
            embed_dim=table.width,
            depths=table.depths,
            num_heads=table.heads,
            window_size=table.window_at(image_size),
            mlp_ratio=table.mlp_ratio,
            drop_path_rate=table.drop_path,
        )
        self.image_size = image_size
        self.width: int = self.num_features
        for block in self.blocks:
            attention = block.attn
            block.attn = MaskedWindowAttention(
                attention.dim, attention.num_heads, window_size=block.window_size
            )
            for name in ("drop_path1", "drop_path2"):
                if isinstance(drop := getattr(block, name), TimmDropPath):
                    setattr(block, name, DropPath(drop.drop_prob))
        initialise_swin(self, table.width)

    @classmethod
    def from_recipe(cls, table: Swin, image_size: int, pretrained: bool) -> "SwinTower":
        """Returns the tower, from its published weights where `pretrained`; tables fit its windows.

        Raises:
            RecipeError: published weights that cannot be read or do not fit.
        """
        tower = cls(table, image_size)
        if pretrained:
            load_swin(tower, str(table.weights))
        return tower

    @property
    def stages(self) -> list[SwinTransformerStage]:
        """The stages; timm's merging stands at the start of each but the first."""
        return [stage for stage in self.layers if isinstance(stage, SwinTransformerStage)]

    @property
    def blocks(self) -> list[SwinTransformerBlock]:
        """All blocks, stage after stage."""
        return [b for stage in self.stages for b in stage.blocks if isinstance(b, SwinTransformerBlock)]

    def number(self, stage: int, at: int) -> int:
        """Returns the number through all stages of block `at` (from 0) of a stage (from 1)."""
        return sum(before.depth for before in self.stages[: stage - 1]) + at

    def embed(self, images: Tensor) -> Tensor:
        """Returns the first block's input [I, h, w, C] of images [I, 3, H, W].

        Raises:
            RecipeError: images of another size than the tower's windows were made for.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise RecipeError(
                f"images of {images.shape[-1]} x {images.shape[-2]} pixels for a Swin of {self.image_size}",
                f"{self.image_size} x {self.image_size} pixels",
                f"Build it with model.image_size={images.shape[-1]}: published tables are resized on loading",
            )
        grid: Tensor = self.patch_embed(images)
        return grid

    def run(self, grid: Tensor, start: int, stop: int) -> Tensor:
        """Returns what block `stop` starts from, of what block `start` starts from: [I, h, w, C]."""
        for number, block in enumerate(self.blocks[start:stop], start):
            grid = self.merged(run_block(block, number, self.checkpointing, grid), number)
        return grid

    def merged(self, grid: Tensor, number: int) -> Tensor:
        """Returns block `number`'s output as the next one takes it: merged 2 x 2 where a stage ends."""
        for stage, following in enumerate(self.stages[1:], 2):
            if number + 1 == self.number(stage, 0):
                merged: Tensor = following.downsample(grid)
                return merged
        return grid

    def finished(self, grid: Tensor) -> Tensor:
        """Returns the last stage's tokens [I, N, C] after the final LayerNorm."""
        tokens: Tensor = self.norm(grid).flatten(1, 2)
        return tokens

    def forward(self, images: Tensor) -> Tensor:
        """Returns the tokens [I, N, C] of images [I, 3, H, W], untouched by any text."""
        return self.finished(self.run(self.embed(images), 0, len(self.blocks)))


def initialise_swin(module: nn.Module, width: int) -> None:
    """Draws new Linears as timm does: truncated normal of 0.02 at Swin-Base's width of 128, biases 0.

    At other widths the deviation keeps a layer's gain, as `layers.attention.initial_deviation` does:
    with 0.02 a tiny tower's attention starts out flat.

    Args:
        width: of the first stage, whichever stage the module stands in.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02 * math.sqrt(BASE_WIDTH / width))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
