"""Parameters and FLOPs of timm's ResNets and ResNeXts, as the image towers use them.

Legend: `side` cells on a side of a stage's input, `cells` of a convolution's output.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsvlp.accounting.cost import Cost, linear, norm
from dsvlp.errors import RecipeError


@dataclass(frozen=True)
class Shape:
    """A trunk: blocks a stage, groups and base width of the 3x3 convolutions; basic blocks or bottlenecks."""

    depths: tuple[int, int, int, int]
    groups: int = 1
    base: int = 64
    bottleneck: bool = True


SHAPES = {
    "resnet18": Shape((2, 2, 2, 2), bottleneck=False),
    "resnet34": Shape((3, 4, 6, 3), bottleneck=False),
    "resnet50": Shape((3, 4, 6, 3)),
    "resnet101": Shape((3, 4, 23, 3)),
    "resnet152": Shape((3, 8, 36, 3)),
    "resnext50_32x4d": Shape((3, 4, 6, 3), groups=32, base=4),
    "resnext101_32x8d": Shape((3, 4, 23, 3), groups=32, base=8),
}


def shape(name: str) -> Shape:
    """Returns the shape of a trunk.

    Raises:
        RecipeError: there is no formula for it.
    """
    if name not in SHAPES:
        raise RecipeError(f"model.image.name = {name!r} has no cost formula", f"one of {', '.join(SHAPES)}")
    return SHAPES[name]


def convolution(inputs: int, outputs: int, kernel: int, cells: int, groups: int = 1) -> Cost:
    """Returns the cost of a convolution without bias and its BatchNorm."""
    return linear(inputs // groups * kernel**2, outputs, cells, bias=False) + norm(outputs)


def block(trunk: Shape, inputs: int, stage: int, side: int, stride: int) -> tuple[Cost, int]:
    """Returns a block's cost and its output channels; stride lies on the first 3x3 convolution."""
    planes, before, after = 64 * 2**stage, side**2, (side // stride) ** 2
    if trunk.bottleneck:
        inner, outputs = planes * trunk.base * trunk.groups // 64, 4 * planes
        cost = convolution(inputs, inner, 1, before) + convolution(inner, inner, 3, after, trunk.groups)
        cost += convolution(inner, outputs, 1, after)
    else:
        outputs = planes
        cost = convolution(inputs, planes, 3, after) + convolution(planes, planes, 3, after)
    if stride > 1 or inputs != outputs:
        cost += convolution(inputs, outputs, 1, after)
    return cost, outputs


def trunk(name: str, image_size: int, *, dilated: bool = False) -> tuple[Cost, tuple[int, int]]:
    """Returns the cost without classifier, and the channels of the last two stages.

    Args:
        name: timm's name.
        image_size: pixels of a side.
        dilated: the last stage keeps stride 16.
    """
    known = shape(name)
    cost, side, channels = convolution(3, 64, 7, (image_size // 2) ** 2), image_size // 4, [64]
    for stage, depth in enumerate(known.depths):
        inputs = channels[-1]
        for index in range(depth):
            stride = 2 if index == 0 and stage and not (dilated and stage == 3) else 1
            more, inputs = block(known, inputs, stage, side, stride)
            cost, side = cost + more, side // stride
        channels.append(inputs)
    return cost, (channels[-2], channels[-1])
