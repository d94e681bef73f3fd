"""SVL's ViT image tower: the first blocks of a timm VisionTransformer, without [CLS] (SVL, S3).

Legend: I images, N = h * w cells, D width.
"""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from dsvlp.layers.attention import initialise
from dsvlp.layers.recompute import Mode, run_block
from dsvlp.models.pretrained import load_vit
from dsvlp.recipe import ViT


class ViTTower(VisionTransformer):
    """timm's blocks under timm's names, the final LayerNorm after the last block (S3a).

    Attributes:
        stride: pixels of a cell's side.
        map_width: channels of the finest map, which SEGL reads.
        segmentation_stride: pixels of a side of SEGL's cells.
        checkpointing: which blocks are recomputed in backward.
    """

    checkpointing: Mode = "none"

    def __init__(self, table: ViT, image_size: int) -> None:
        super().__init__(
            img_size=image_size,
            patch_size=table.patch_size,
            embed_dim=table.width,
            depth=table.layers,
            num_heads=table.heads,
            mlp_ratio=table.mlp_ratio,
            class_token=False,
            global_pool="",
            num_classes=0,
            dynamic_img_size=True,
        )
        initialise(self.blocks, table.width)
        self.stride = self.segmentation_stride = table.patch_size
        self.map_width = table.width

    @classmethod
    def from_recipe(cls, table: ViT, image_size: int, pretrained: bool) -> "ViTTower":
        """Returns the tower, from its published weights where `pretrained`."""
        tower = cls(table, image_size)
        if pretrained:
            load_vit(tower, str(table.weights))
        return tower

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Returns states [I, N, D] and their map [I, D, h, w] of images [I, 3, H, W].

        Plain tensors: inside a dataclass ZeRO-3 would not see them, nor give the position table its
        gradient.
        """
        grid = self.patch_embed(images)  # [I, h, w, D]
        height, width = grid.shape[1:3]
        tokens = self._pos_embed(grid)
        for index, block in enumerate(self.blocks):
            tokens = run_block(block, index, self.checkpointing, tokens)
        tokens = self.norm(tokens)
        return tokens, tokens.transpose(1, 2).unflatten(2, (height, width))
