"""Pixel-BERT: a CNN's pixels and the words of a text in one BERT (specification P1 to P8).

**Padding.** Images of a batch may differ in size; they lie at the top left of a canvas of mean colour. Cells
that the canvas adds are masked: no word and no other pixel reads them, none is drawn. The CNN itself sees the
canvas beside the picture, as every detector's does: pixels within its reach of the right or lower edge
change a little with the canvas, which is therefore chosen for the global batch, not for a rank's share.

Legend: I images, T texts, B pairs, L text tokens, N = h * w cells of stride 64, S cells that are kept,
D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsvlp.layers.attention import NORM_EPS, initial_deviation, initialise
from dsvlp.layers.positions import grid_positions
from dsvlp.layers.recompute import Mode
from dsvlp.models.bert import BERTTower
from dsvlp.models.cnn import CNN
from dsvlp.models.joint import JointModel
from dsvlp.recipe import PixelBERTModel
from dsvlp.seed import fold, uniform
from dsvlp.types import Encoded, States


class PixelTower(nn.Module):
    """The trunk, a 2x2 max-pool, a projection, one semantic vector that says "pixel" (P2, P4).

    No position is added in the paper, and no LayerNorm: BERT sees a set of pixels. Kin add both (P4a, P4b).

    Attributes:
        stride: pixels of a side of a token's cell.
    """

    stride = 64

    def __init__(self, table: PixelBERTModel) -> None:
        super().__init__()
        width = table.text.width
        self.trunk = CNN.from_recipe(table.image, table.pretrained)
        self.project = nn.Conv2d(self.trunk.width, width, 1)
        self.semantic = nn.Parameter(torch.empty(width).normal_(std=initial_deviation(width)))
        self.positions = grid_positions(table.positions, table.cells_of_longest_side, width)
        self.norm = nn.LayerNorm(width, NORM_EPS) if table.norm_pixels else nn.Identity()
        initialise(self.project, width)

    def forward(self, images: Tensor) -> Tensor:
        """Returns pixels [I, h, w, D] of images [I, 3, H, W]; cells that H or W cut are left out (P3)."""
        grid = self.project(F.max_pool2d(self.trunk(images), 2))  # [I, D, h, w]
        tokens = self.norm(self.positions(grid) + self.semantic)  # [I, N, D]
        return tokens.unflatten(1, grid.shape[2:])


class PixelBERT(JointModel):
    """One Transformer over [CLS] text [SEP] pixels.

    In training each image keeps `table.pixels` of its cells, drawn from its key; in evaluation all.

    Attributes:
        stride: pixels of a side of a token's cell.
    """

    def __init__(self, table: PixelBERTModel, text: BERTTower) -> None:
        super().__init__(text)
        self.image = PixelTower(table)
        self.stride, self.kept = self.image.stride, table.pixels

    def set_activation_checkpointing(self, mode: Mode) -> None:
        """Chooses the blocks whose activations are recomputed in backward, see `layers.recompute`."""
        self.text.checkpointing = mode
        self.image.trunk.set_activation_checkpointing(mode)

    def encode_image(
        self, images: Tensor, image_mask: Tensor | None = None, image_keys: Tensor | None = None
    ) -> States:
        """Returns pixels [I, N, D]; in training those that were drawn, [I, S, D].

        Args:
            images: float32 [I, 3, H, W].
            image_mask: bool [I, H, W], True where there is picture; None: everywhere.
            image_keys: int64 [I], what the draw depends on; None: every pixel is kept.
        """
        grid = self.image(images)
        mask = cells_with_picture(image_mask, grid)
        pixels = States(grid.flatten(1, 2), mask.flatten(1))
        if not self.training or image_keys is None or not 0 < self.kept < pixels.mask.shape[1]:
            return pixels
        cells = drawn_cells(mask, image_keys, self.kept)
        tokens = pixels.tokens.gather(1, cells[..., None].expand(-1, -1, grid.shape[3]))  # [I, S, D]
        return States(tokens, pixels.mask.gather(1, cells))

    def fuse(self, image: States, text: States) -> Encoded:
        """Returns states of B aligned rows of both after the Transformer, and [CLS]'s [B, D]."""
        mask = torch.cat((text.mask, image.mask), 1)  # one for both kinds of padding
        tokens = self.text.run_layers(torch.cat((text.tokens, image.tokens), 1), mask)
        words, pixels = tokens.split((text.tokens.shape[1], image.tokens.shape[1]), 1)
        return Encoded(States(pixels, image.mask), States(words, text.mask), words[:, 0])


def cells_with_picture(image_mask: Tensor | None, grid: Tensor) -> Tensor:
    """Returns which cells show picture, bool [I, h, w], for a grid [I, h, w, D].

    Those whose centre does. That is what is left of the image on its own, whatever the canvas: pooling drops
    a last line of the trunk's map that has no partner, so 800 pixels make 12 lines, not 13 (P3).
    """
    if image_mask is None:
        return grid.new_ones(grid.shape[:3], dtype=torch.bool)
    stride = PixelTower.stride
    centres = image_mask[:, stride // 2 :: stride, stride // 2 :: stride]
    return centres[:, : grid.shape[1], : grid.shape[2]]


def drawn_cells(mask: Tensor, keys: Tensor, count: int) -> Tensor:
    """Returns `count` different cells of each image in their order, int64 [I, S]; of those with picture (P7).

    Where fewer show picture, all of them are there, and the rest is filled with others, at which the mask is
    False. A cell's draw depends on the image's key, its line and its column: not on rank, batch or canvas.

    Args:
        mask: bool [I, h, w], True where there is picture.
        keys: int64 [I], the images'.
        count: S, less than h * w.
    """
    lines = fold(keys[:, None], torch.arange(mask.shape[1], device=keys.device))  # [I, h]
    draws = uniform(lines, "pixelbert.sample", mask.shape[2]).masked_fill(~mask, 2.0)  # [I, h, w]
    return draws.flatten(1).argsort(dim=1, stable=True)[:, :count].sort(1).values
