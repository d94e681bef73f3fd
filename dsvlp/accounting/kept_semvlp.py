"""What SemVLP keeps between forward and backward: the counterpart of `flops_semvlp`.

Legend: n image tokens, m text tokens, d width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dsvlp.accounting.flops_semvlp import BOX, two_stream
from dsvlp.accounting.kept import STATE, Part, Rule
from dsvlp.accounting.kept_pixelbert import stack, words
from dsvlp.accounting.passes import Runs
from dsvlp.recipe import SemVLPModel


def semvlp(model: SemVLPModel, text_n: float, rule: Rule, runs: Runs, pairs: int) -> Iterator[Part]:
    """Yields the model's parts as a micro-batch of so many pairs runs them, each mode with its share."""
    share = two_stream(model)
    yield objects(model, rule).times(pairs * runs.images)
    yield words(model.text, text_n, rule).times(pairs * runs.texts)
    single = stack(model.text, text_n + model.objects + 1, rule)
    two = [*stack(model.text, text_n, rule), *image_stream(model, text_n, rule)]
    yield from (part.times(pairs * runs.fused * (1 - share)) for part in single)
    yield from (part.times(pairs * runs.fused * share) for part in two)


def objects(model: SemVLPModel, rule: Rule) -> Part:
    """Returns the objects' embedding for one image: what the projection reads, the norm, dropout."""
    d, n = model.text.width, model.objects + 1
    read = float(rule.read() * model.objects * (model.feature_width + BOX))
    if model.box_fuse == "avg_ln":
        read += 2 * rule.norm(model.objects, d)
    return Part(read + rule.norm(n, d) + rule.dropout(n * d, model.text.dropout))


def image_stream(model: SemVLPModel, text_n: float, rule: Rule) -> Iterator[Part]:
    """Yields the objects' layers, and the words' last states that the upper ones read (M7).

    In fp32 these are kept once for all layers, in bf16 each layer's key and value copy them.
    """
    text, n = model.text, model.objects + 1
    d = text.width
    cross = rule.read() * n * d + rule.again(2) * text_n * d
    cross += rule.mixing(n, text_n, d, text.heads, text.dropout)
    cross += rule.dropout(n * d, text.dropout) + rule.norm(n, d)
    for index, layer in enumerate(stack(text, n, rule)):
        yield layer if index < model.cross_from else replace(layer, kept=layer.kept + cross)
    yield Part(STATE * text_n * d)
