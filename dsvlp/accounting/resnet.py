"""Parameters and FLOPs of timm's ResNets and ResNeXts, as the image towers use them.

Legend: `grid` (lines, columns) of a map, `cells` of a convolution's output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from dsvlp.accounting.cost import Cost, linear, norm
from dsvlp.errors import RecipeError

Grid = tuple[int, int]


@dataclass(frozen=True)
class Shape:
    """A trunk.

    Attributes:
        depths: blocks a stage.
        groups: of the 3x3 convolutions of bottlenecks.
        base: width of a bottleneck of 64 planes, a group.
        bottleneck: for each stage, whether its blocks are bottlenecks; else they are basic ones.
        planes: a stage's channels, a quarter of a bottleneck's outputs.
        stem: channels of the stem's convolutions: one of 7x7, or several of 3x3.
        averaged: a shortcut that changes the grid averages before its convolution.
    """

    depths: tuple[int, int, int, int]
    groups: int = 1
    base: int = 64
    bottleneck: tuple[bool, bool, bool, bool] = (True, True, True, True)
    planes: tuple[int, int, int, int] = (64, 128, 256, 512)
    stem: tuple[int, ...] = (64,)
    averaged: bool = False


_BASIC = (False, False, False, False)

SHAPES = {
    "resnet18": Shape((2, 2, 2, 2), bottleneck=_BASIC),
    "resnet34": Shape((3, 4, 6, 3), bottleneck=_BASIC),
    "resnet50": Shape((3, 4, 6, 3)),
    "resnet101": Shape((3, 4, 23, 3)),
    "resnet152": Shape((3, 8, 36, 3)),
    "resnext50_32x4d": Shape((3, 4, 6, 3), groups=32, base=4),
    "resnext101_32x8d": Shape((3, 4, 23, 3), groups=32, base=8),
    "resnet10t": Shape((1, 1, 1, 1), bottleneck=_BASIC, stem=(24, 32, 64), averaged=True),
    "test_resnet": Shape(
        (1, 1, 1, 1),
        bottleneck=(False, False, True, False),
        planes=(32, 48, 48, 96),
        stem=(16, 16, 32),
        averaged=True,
    ),
}


@dataclass(frozen=True)
class Block:
    """A residual block for one image.

    Attributes:
        stage: from 0.
        inputs, inner, outputs: channels.
        before, after: cells of its input and its output; the first 3x3 convolution strides.
        bottleneck: 1x1, 3x3 in groups, 1x1; else 3x3 twice.
        projects: its shortcut is a convolution.
        averages: its shortcut averages first.
    """

    stage: int
    inputs: int
    inner: int
    outputs: int
    before: int
    after: int
    bottleneck: bool
    projects: bool
    averages: bool

    def cost(self, groups: int) -> Cost:
        """Returns the block's cost."""
        if self.bottleneck:
            cost = convolution(self.inputs, self.inner, 1, self.before)
            cost += convolution(self.inner, self.inner, 3, self.after, groups)
            cost += convolution(self.inner, self.outputs, 1, self.after)
        else:
            cost = convolution(self.inputs, self.inner, 3, self.after)
            cost += convolution(self.inner, self.outputs, 3, self.after)
        if self.projects:
            cost += convolution(self.inputs, self.outputs, 1, self.after)
        return cost


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


def smaller(grid: Grid, stride: int) -> Grid:
    """Returns the grid behind a stride; what it cuts makes one more cell."""
    return -(-grid[0] // stride), -(-grid[1] // stride)


def stem(known: Shape, image: Grid) -> Cost:
    """Returns the cost of the convolutions before the pooling, the first of which strides."""
    kernel, cells = (7 if len(known.stem) == 1 else 3), prod(smaller(image, 2))
    channels = (3, *known.stem)
    return sum((convolution(a, b, kernel, cells) for a, b in zip(channels, known.stem, strict=False)), Cost())


def blocks(known: Shape, image: Grid, *, dilated: bool = False) -> Iterator[Block]:
    """Yields the blocks behind the stem.

    Args:
        known: the trunk.
        image: height and width, pixels.
        dilated: the last stage keeps stride 16.
    """
    grid, inputs = smaller(image, 4), known.stem[-1]
    for stage, depth in enumerate(known.depths):
        planes, bottleneck = known.planes[stage], known.bottleneck[stage]
        inner = planes * known.base * known.groups // 64 if bottleneck else planes
        outputs = 4 * planes if bottleneck else planes
        for index in range(depth):
            stride = 2 if index == 0 and stage and not (dilated and stage == 3) else 1
            after = smaller(grid, stride)
            projects = index == 0 and (stage > 0 or inputs != outputs)
            averages = projects and known.averaged and stage > 0
            cells = prod(grid), prod(after)
            yield Block(stage, inputs, inner, outputs, *cells, bottleneck, projects, averages)
            grid, inputs = after, outputs


def trunk(name: str, image: Grid, *, dilated: bool = False) -> tuple[Cost, tuple[int, int]]:
    """Returns the cost without classifier, and the channels of the last two stages.

    Args:
        name: timm's name.
        image: height and width, pixels.
        dilated: the last stage keeps stride 16.
    """
    known = shape(name)
    cost, channels = stem(known, image), [0, 0, 0, 0]
    for block in blocks(known, image, dilated=dilated):
        cost, channels[block.stage] = cost + block.cost(known.groups), block.outputs
    return cost, (channels[-2], channels[-1])
