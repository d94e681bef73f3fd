"""SemVLP by formula: embedded objects and words in one transformer, as one stream or as two (M1 to M7).

Legend: n image tokens (the objects and [IMG]), m text tokens, d width.
"""

from __future__ import annotations

from dsvlp.accounting.cost import Cost, attention, block, linear, norm
from dsvlp.accounting.flops_pixelbert import words
from dsvlp.accounting.passes import Runs
from dsvlp.recipe import SemVLPModel

BOX = 4  # numbers


def two_stream(model: SemVLPModel) -> float:
    """Returns the share of the pairs that a run reads as two streams."""
    return {"single": 0.0, "two": 1.0}.get(model.mode_schedule, 0.5)


def objects(model: SemVLPModel) -> Cost:
    """Returns the cost of embedding an image's objects, [IMG] and the norm included (M4, M5)."""
    d, n, features = model.text.width, model.objects, model.feature_width
    if model.box_fuse == "concat":
        project = linear(features + BOX, d, n)
    else:
        project = linear(features, d, n) + linear(BOX, d, n) + 2 * norm(d)
    return project + Cost(d) + norm(d)


def single(model: SemVLPModel, text_n: float) -> Cost:
    """Returns the cost of all layers over objects and words in one sequence (M6)."""
    return model.text.layers * block(model.text.width, model.text.feed_forward, text_n + model.objects + 1)


def two(model: SemVLPModel, text_n: float) -> Cost:
    """Returns the cost of the words' layers, the objects' same layers and their cross-attention (M7)."""
    d, f, layers, n = model.text.width, model.text.feed_forward, model.text.layers, model.objects + 1
    streams = layers * block(d, f, text_n) + layers * block(d, f, n)
    crossing = (layers - model.cross_from) * (attention(d, n, text_n) + norm(d))
    shared = layers * block(d, f, 0).parameters
    return streams + crossing + Cost(-shared)


def semvlp(model: SemVLPModel, text_n: float, runs: Runs) -> dict[str, Cost]:
    """Returns component -> cost of a pair, the mean over both modes as often as the run has them."""
    share, low, high = two_stream(model), single(model, text_n), two(model, text_n)
    forward = (1 - share) * low.forward + share * high.forward
    return {
        "image tower": objects(model).run(runs.images),
        "words": words(model.text.vocabulary, model.text.width),
        "transformer": Cost(high.parameters, runs.fused * forward),
    }
