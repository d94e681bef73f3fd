"""SVL's ResNet image tower: timm's trunk, a 1x1 projection and a position embedding (SVL, S4).

Legend: I images, N = h * w cells of stride 32, D width, C channels of the trunk.
"""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F
from timm.models import is_model_in_modules
from timm.models.resnet import ResNet as Trunk
from torch import Tensor, nn

from dsvlp.errors import RecipeError
from dsvlp.layers.attention import initialise
from dsvlp.layers.positions import GridPositions
from dsvlp.layers.recompute import Mode
from dsvlp.models.cnn import freeze_statistics, resnet_stages
from dsvlp.models.pretrained import load_cnn
from dsvlp.recipe import ResNet


class ResNetTower(nn.Module):
    """A ResNet whose last stage gives the tokens, and whose finer map SEGL may read (S4a).

    `upsample`: one map, of the last stage; SEGL enlarges its logits. `dilate5`: the last stage keeps
    stride 16 by dilation, tokens are means of 2 x 2 cells. `stage4`: the finer map is the stage before.

    Attributes:
        stride: pixels of a token's side.
        map_width: channels of the finest map, which SEGL reads.
        segmentation_stride: pixels of a side of SEGL's cells: half the tokens' (24 x 24 at 384).
        checkpointing: which stages are recomputed in backward.
    """

    checkpointing: Mode = "none"

    def __init__(self, table: ResNet, image_size: int, width: int) -> None:
        super().__init__()
        dilated = table.segmentation == "dilate5"
        self.stride = 32
        self.segmentation_stride = 16
        self.segmentation = table.segmentation
        self.frozen_statistics = table.batch_norm == "frozen"
        self.trunk = trunk(table.name, self.segmentation_stride if dilated else self.stride)
        self.project = nn.Conv2d(self.trunk.num_features, width, 1)
        self.positions = GridPositions(image_size // self.stride, width)
        initialise(self.project, width)
        self.map_width = self.trunk.feature_info[-2]["num_chs"] if table.segmentation == "stage4" else width

    @classmethod
    def from_recipe(cls, table: ResNet, image_size: int, width: int, pretrained: bool) -> "ResNetTower":
        """Returns the tower, its trunk from published weights where `pretrained`."""
        tower = cls(table, image_size, width)
        if pretrained:
            load_cnn(tower.trunk, str(table.weights))
        return tower.train()

    def train(self, mode: bool = True) -> "ResNetTower":
        """Sets training mode; BatchNorm whose statistics are frozen stays in evaluation mode."""
        super().train(mode)
        if self.frozen_statistics:
            freeze_statistics(self.trunk)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns states [I, N, D], then maps, finest first, of images [I, 3, H, W].

        The last map is always the tokens' grid [I, D, h, w].
        """
        stage4, stage5 = self._stages(images)
        grid = self.project(stage5)
        finer: tuple[Tensor, ...] = ()
        if self.segmentation == "dilate5":
            finer, grid = (grid,), F.avg_pool2d(grid, self.stride // self.segmentation_stride)
        elif self.segmentation == "stage4":
            finer = (stage4,)
        tokens = self.positions(grid)  # [I, N, D]
        return tokens, *finer, tokens.transpose(1, 2).view_as(grid)

    def _stages(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the maps of the last two stages; channels last, as convolutions run fastest."""
        images = images.to(memory_format=torch.channels_last)
        *_, before, last = resnet_stages(self.trunk, images, self.checkpointing)
        return before, last


def trunk(name: str, stride: int) -> Trunk:
    """Returns timm's ResNet without pooling and classifier, of output stride 16 or 32.

    Raises:
        RecipeError: timm has no ResNet of this name.
    """
    if not is_model_in_modules(name, {"resnet"}):
        raise RecipeError(
            f"model.image.name = {name!r}: timm has no ResNet of this name",
            "e.g. resnet50, resnet18, resnext101_32x8d",
        )
    model = timm.create_model(name, pretrained=False, num_classes=0, global_pool="", output_stride=stride)
    assert isinstance(model, Trunk)
    return model
