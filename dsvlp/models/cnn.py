"""A CNN trunk of stride 32: timm's, without pooling and classifier, channels last.

Legend: I images, C channels of the last stage, h x w its grid.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dsvlp.errors import RecipeError
from dsvlp.layers.batch_norm import SyncBatchNorm2d
from dsvlp.layers.recompute import Mode, run_block
from dsvlp.models.pretrained import load_cnn
from dsvlp.recipe import CNN as Table

STRIDE = 32
OBLONG = (96, 160)  # pixels, a picture that no net of fixed windows reads
REFUSALS = (AssertionError, RuntimeError)  # timm's and torch's, for want of classes of their own
KNOWN = "resnet18, resnet50, resnet101, resnext50_32x4d, resnext101_32x8d, convnext_base"


class CNN(nn.Module):
    """A trunk under timm's names, `body.*`.

    Attributes:
        width: C.
    """

    body: Any  # timm's nets have no base class that names what they share

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.body = backbone(table.name)
        if table.batch_norm == "sync":
            synchronise(self.body, table.name)
        self.width: int = self.body.num_features
        self.frozen_statistics = table.batch_norm == "frozen"
        self._name = table.name
        self._checkpointing: Mode = "none"

    @classmethod
    def from_recipe(cls, table: Table, pretrained: bool) -> CNN:
        """Returns the trunk, from its published weights where `pretrained`.

        Raises:
            RecipeError: timm has no such backbone, its stride is not 32, its norms cannot be synchronised, or
                its weights do not fit.
        """
        trunk = cls(table)
        if pretrained:
            load_cnn(trunk.body, str(table.weights))
        return trunk.train()

    def train(self, mode: bool = True) -> CNN:
        """Sets training mode; BatchNorm whose statistics are frozen stays in evaluation mode."""
        super().train(mode)
        if self.frozen_statistics:
            freeze_statistics(self)
        return self

    def set_activation_checkpointing(self, mode: Mode) -> None:
        """Chooses the stages that are recomputed in backward: ResNets' one by one; of others timm does all.

        Raises:
            RecipeError: timm cannot recompute this one, or would count BatchNorm's statistics twice.
        """
        self._checkpointing = mode
        if mode == "none" or isinstance(self.body, ResNet):
            return
        if not try_recomputing(self.body):
            raise RecipeError(
                f"engine.activation_checkpointing = {mode!r}, but timm cannot recompute {self._name}",
                "a CNN that can be: a ResNet, a ResNeXt, a ConvNeXt",
                "Choose one, or set engine.activation_checkpointing='none'",
            )
        if not self.frozen_statistics and any(isinstance(part, _BatchNorm) for part in self.body.modules()):
            raise RecipeError(
                f"engine.activation_checkpointing = {mode!r} recomputes {self._name} by timm, which counts "
                f"BatchNorm's statistics twice",
                "a ResNet or ResNeXt, or statistics that stay",
                "Set model.image.batch_norm='frozen' or engine.activation_checkpointing='none'",
            )

    def forward(self, images: Tensor) -> Tensor:
        """Returns the last stage's map [I, C, h, w] of images [I, 3, H, W].

        Channels last is how convolutions run fastest. The weights stay as they are: ZeRO flattens them.
        """
        images = images.to(memory_format=torch.channels_last)
        if isinstance(self.body, ResNet):
            return resnet_stages(self.body, images, self._checkpointing)[-1]
        out: Tensor = self.body.forward_features(images)
        return out


def backbone(name: str) -> nn.Module:
    """Returns timm's model of a name, its classifier left out; raises as `check`."""
    check(name)
    return _created(name)


def _created(name: str) -> nn.Module:
    trunk: nn.Module = timm.create_model(name, num_classes=0, global_pool="")
    return trunk


@cache
def check(name: str) -> None:
    """Tries timm's model of a name on the meta device, on a square picture and on an oblong one.

    Raises:
        RecipeError: timm has none, its pooling cannot be left out, its last map has another stride than
            32, or it reads one size alone.
    """
    if not timm.is_model(name):
        raise RecipeError(f"model.image.name = {name!r}: timm has no model of this name", f"e.g. {KNOWN}")
    try:
        with torch.device("meta"):
            net: Any = _created(name).eval()  # in training BatchNorm refuses one image's single cell
    except REFUSALS as error:
        raise _unfit(name, f"cannot be built without its pooling ({_first_line(error)})", OBLONG) from error
    side = net.pretrained_cfg["input_size"][-1]
    for size in ((side, side), OBLONG):
        _check_map(name, net, size)


def _check_map(name: str, net: Any, size: tuple[int, int]) -> None:
    picture = f"picture of {size[0]} x {size[1]} pixels"
    try:
        with torch.device("meta"):
            out = net.forward_features(torch.empty(1, 3, *size))
    except REFUSALS as error:
        raise _unfit(name, f"reads no {picture} ({_first_line(error)})", size) from error
    shape = tuple(out.shape) if isinstance(out, Tensor) else ()
    sides = [(side // STRIDE, -(-side // STRIDE)) for side in size]  # what the stride cuts may count or not
    if shape not in [(1, net.num_features, *cells) for cells in zip(*sides, strict=True)]:
        raise _unfit(name, f"makes {shape or f'a {type(out).__name__}'} of a {picture}", size)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _unfit(name: str, said: str, size: tuple[int, int]) -> RecipeError:
    lines, columns = (-(-side // STRIDE) for side in size)
    return RecipeError(
        f"model.image.name = {name!r} {said}",
        f"(1, channels, {lines}, {columns}): a CNN of stride {STRIDE}, for pictures of any size",
        f"Choose e.g. {KNOWN}",
    )


def try_recomputing(net: Any) -> bool:
    """Has timm recompute a net's blocks in backward; returns False where it cannot."""
    try:
        net.set_grad_checkpointing(True)
    except (AssertionError, AttributeError):
        return False
    return True


def synchronise(net: nn.Module, name: str) -> None:
    """Puts norms over all ranks' images in the place of a net's BatchNorms, under the same names.

    Raises:
        RecipeError: the net's BatchNorm does more than normalise.
    """
    for parent in list(net.modules()):
        for place, norm in list(parent.named_children()):
            if not isinstance(norm, _BatchNorm):
                continue
            if type(norm) is not nn.BatchNorm2d:
                raise RecipeError(
                    f"model.image.batch_norm = 'sync', but {name} has {type(norm).__name__}",
                    "a net with torch's own BatchNorm2d: a ResNet or ResNeXt",
                    "Choose one, or set model.image.batch_norm='frozen'",
                )
            ours = SyncBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
            ours.load_state_dict(norm.state_dict())
            setattr(parent, place, ours)


def resnet_stages(net: ResNet, images: Tensor, mode: Mode) -> list[Tensor]:
    """Returns the maps of a ResNet's stages, finest first."""
    states = net.maxpool(net.act1(net.bn1(net.conv1(images))))
    maps = []
    for index, stage in enumerate((net.layer1, net.layer2, net.layer3, net.layer4)):
        states = run_block(stage, index, mode, states)
        maps.append(states)
    return maps


def freeze_statistics(module: nn.Module) -> None:
    """Puts every BatchNorm of a module into evaluation mode; scale and shift are still trained."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.eval()
