"""Pixel-BERT by formula: a CNN, a projection, one BERT over words and pixels (specification P1 to P8).

Where images keep their aspect, a picture of 4:3 is priced, as the specification's table does: 800 x 1066.
What padding to the widest of a batch adds is not the model's work.

Legend: n tokens, d width.
"""

from __future__ import annotations

from math import prod

from dsvlp.accounting import cnn
from dsvlp.accounting.cost import Cost, block, linear, norm, table
from dsvlp.accounting.flops_svl import POSITIONS
from dsvlp.accounting.passes import Runs
from dsvlp.accounting.resnet import Grid, smaller
from dsvlp.recipe import PixelBERTModel


def picture(model: PixelBERTModel) -> Grid:
    """Returns height and width of the picture that is priced."""
    if model.longest_side is None:
        return model.image_size, model.image_size
    short = min(model.image_size, model.longest_side * 3 // 4)
    return short, short * 4 // 3


def cells(model: PixelBERTModel) -> int:
    """Returns the picture's cells of stride 64; what the 2x2 pool cuts is left out (P3)."""
    return prod(side // 2 for side in smaller(picture(model), 32))


def sampled(model: PixelBERTModel) -> int:
    """Returns the cells that a training step keeps (P7)."""
    return min(model.pixels or cells(model), cells(model))


def words(vocabulary: int, d: int) -> Cost:
    """Returns the cost of BERT's embeddings: words, positions, segments, norm."""
    return table(vocabulary + POSITIONS + 2, d) + norm(d)


def pixelbert(model: PixelBERTModel, text_n: float, runs: Runs) -> dict[str, Cost]:
    """Returns component -> cost of a pair; the CNN runs once for all captions of an image."""
    d, n = model.text.width, cells(model)
    trunk, channels = cnn.trunk(model.image.name, picture(model))
    pixels = linear(channels, d, n) + Cost(d)  # the semantic vector
    if model.positions == "learned":
        pixels += 2 * table(model.cells_of_longest_side, d)  # of lines and of columns
    if model.norm_pixels:
        pixels += norm(d)
    layers = model.text.layers * block(d, model.text.feed_forward, text_n + sampled(model))
    return {
        "image tower": (trunk + pixels).run(runs.images),
        "words": words(model.text.vocabulary, d),
        "transformer": layers.run(runs.fused),
    }
