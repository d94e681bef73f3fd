"""What Pixel-BERT keeps between forward and backward: the counterpart of `flops_pixelbert`.

Legend: n tokens, d width.
"""

from __future__ import annotations

from collections.abc import Iterator

from dsvlp.accounting import cnn, kept_cnn
from dsvlp.accounting.flops_pixelbert import cells, picture, sampled
from dsvlp.accounting.kept import STATE, Part, Rule
from dsvlp.accounting.passes import Runs
from dsvlp.recipe import BERT, PixelBERTModel


def pixelbert(model: PixelBERTModel, text_n: float, rule: Rule, runs: Runs, pairs: int) -> Iterator[Part]:
    """Yields the model's parts as a micro-batch of so many pairs runs them."""
    image = [*kept_cnn.trunk(model.image.name, picture(model), rule), projection(model, rule)]
    yield from (part.times(pairs * runs.images) for part in image)
    yield words(model.text, text_n, rule).times(pairs * runs.texts)
    n = text_n + sampled(model)
    yield from (part.times(pairs * runs.fused) for part in stack(model.text, n, rule))
    yield last_states(model.text, n, rule).times(pairs * runs.fused)


def projection(model: PixelBERTModel, rule: Rule) -> Part:
    """Returns pool, 1x1 convolution, norm for an image: the pooled map, where it comes from, the tokens."""
    _, channels = cnn.trunk(model.image.name, picture(model))
    norm = rule.norm(cells(model), model.text.width) if model.norm_pixels else 0.0
    return Part((rule.product + kept_cnn.PLACE) * channels * cells(model) + norm)


def words(tower: BERT, n: float, rule: Rule) -> Part:
    """Returns the words' embeddings for one text."""
    return Part(rule.norm(n, tower.width) + rule.dropout(n * tower.width, tower.dropout))


def stack(tower: BERT, n: float, rule: Rule) -> list[Part]:
    """Returns BERT's layers over one sequence of n tokens."""
    block = rule.post_norm_block(n, tower.width, tower.feed_forward, tower.heads, tower.dropout)
    return [Part(block, STATE * n * tower.width, index) for index in range(tower.layers)]


def last_states(tower: BERT, n: float, rule: Rule) -> Part:
    """Returns the last states of a sequence, of which ITM reads one token: in fp32 where they lie."""
    return Part(0.0 if rule.half else STATE * n * tower.width)
