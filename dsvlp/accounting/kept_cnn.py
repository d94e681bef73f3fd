"""What a CNN's trunk keeps between forward and backward, whether BatchNorm's statistics are frozen or not.

Either way BatchNorm keeps its input, for its scale's gradient; a convolution keeps the same bytes as the
activation before it, since that works in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from math import prod

from dsvlp.accounting import cnn, resnet
from dsvlp.accounting.kept import Part, Rule
from dsvlp.accounting.resnet import SHAPES, Grid, shape, smaller

PLACE = 8  # bytes: where a maximum was found


def trunk(name: str, image: Grid, rule: Rule) -> Iterator[Part]:
    """Yields the parts of a CNN of stride 32 for one image.

    Args:
        name: timm's name.
        image: height and width, pixels.
        rule: how a number is kept.
    """
    if name in SHAPES:
        yield from stages(name, image, rule)
        return
    found = cnn.counted(name, image)
    share = rule.product / 4
    yield Part(share * found.kept, share * found.kept_recomputing, 0)


def stages(name: str, image: Grid, rule: Rule, *, dilated: bool = False) -> Iterator[Part]:
    """Yields the stem and the stages, each of which is recomputed as a whole.

    Args:
        name: timm's name.
        image: height and width, pixels.
        rule: how a number is kept.
        dilated: the last stage keeps stride 16.
    """
    known = shape(name)
    halved, pooled = prod(smaller(image, 2)), known.stem[-1] * prod(smaller(image, 4))
    # The image, each of the stem's convolutions twice (norm and activation), the pooling's places.
    yield Part(rule.read() * 3 * prod(image) + 2 * rule.product * sum(known.stem) * halved + PLACE * pooled)
    for stage, blocks in groupby(resnet.blocks(known, image, dilated=dilated), lambda block: block.stage):
        first, *rest = blocks
        numbers = sum(_numbers(block) for block in (first, *rest))
        yield Part(rule.product * numbers, rule.product * first.inputs * first.before, stage)


def _numbers(block: resnet.Block) -> int:
    """Returns what a block keeps: of each convolution the norm's input and the activation's output."""
    first = block.inner * (block.before if block.bottleneck else block.after)
    second = block.inner * block.after if block.bottleneck else 0
    numbers = 2 * (first + second + block.outputs * block.after)
    if block.projects:  # the norm's input, and the averaged input
        numbers += (block.outputs + block.averages * block.inputs) * block.after
    return numbers
