"""FIBER and METER by formula: the same Swin and RoBERTa, fused inside the towers or on top of them.

What lies below the first fused block or layer is a tower's *prefix*, the rest its *top*. A top runs
alone for ITC, and for each fused pair with the fusion's attention in it. METER's towers are all prefix.

Legend: n tokens, c a stage's width, d text width, f feed-forward width.
"""

from __future__ import annotations

from dsvlp.accounting.cost import Cost, block, cross_attention, feed_forward, linear, norm, pooler, table
from dsvlp.accounting.passes import Runs
from dsvlp.recipe import FIBERModel, METERModel, RoBERTa, Swin, Towers

Place = tuple[int, int]  # stage and block, both from 0


def grid(tower: Swin, image_size: int, stage: int) -> int:
    """Returns the tokens of a stage, counted from 0."""
    return (image_size // tower.patch_size >> stage) ** 2


def swin_block(tower: Swin, image_size: int, stage: int) -> Cost:
    """Returns the cost of a block: attention in windows with a table of relative positions, perceptron."""
    n, c = grid(tower, image_size, stage), tower.width << stage
    side = min(tower.window_at(image_size), image_size // tower.patch_size >> stage)
    windows = Cost((2 * side - 1) ** 2 * tower.heads[stage], 4.0 * n * side**2 * c)
    attention = linear(c, 3 * c, n) + windows + linear(c, c, n)
    return attention + feed_forward(c, int(c * tower.mlp_ratio), n) + 2 * norm(c)


def swin(tower: Swin, image_size: int, first: Place) -> tuple[Cost, Cost]:
    """Returns the costs of the image tower below block `first` and of the rest, the final norm included."""
    cells = grid(tower, image_size, 0)
    below = linear(3 * tower.patch_size**2, tower.width, cells) + norm(tower.width)
    above = norm(tower.final_width)
    for stage, depth in enumerate(tower.depths):
        c = tower.width << stage
        merging = linear(2 * c, c, grid(tower, image_size, stage), bias=False) + norm(2 * c)
        if stage and stage <= first[0]:
            below += merging
        elif stage:
            above += merging
        blocks_below = depth if stage < first[0] else first[1] if stage == first[0] else 0
        one = swin_block(tower, image_size, stage)
        below, above = below + blocks_below * one, above + (depth - blocks_below) * one
    return below, above


def roberta(tower: RoBERTa, n: float, first: int) -> tuple[Cost, Cost]:
    """Returns the costs of the text tower below layer `first` and of the rest; it has no pooler."""
    d = tower.width
    embeddings = table(tower.vocabulary + tower.positions + 1, d) + norm(d)
    layer = block(d, tower.feed_forward, n)
    return embeddings + first * layer, (tower.layers - first) * layer


def gated(model: FIBERModel, text_n: float) -> Cost:
    """Returns the cost of the plan's cross-attention in both towers, gates included (FIBER, 1.2 and 1.4)."""
    cost, d = Cost(), model.text.width
    for stage, _, _ in model.fusion.plan:
        c, n = model.image.width << (stage - 1), grid(model.image, model.image_size, stage - 1)
        cost += cross_attention(c, d, n, text_n) + cross_attention(d, c, text_n, n) + Cost(2)
        if model.fusion.image_query_norm:
            cost += norm(c)
    return cost


def final_grid(model: Towers) -> int:
    """Returns the tokens of the image tower's last stage."""
    return grid(model.image, model.image_size, len(model.image.depths) - 1)


def poolers(model: Towers, text_n: float) -> Cost:
    """Returns the cost of both streams' transforms and poolers after the fusion (FIBER, 1.5)."""
    d = model.text.width
    return pooler(model.image.final_width, d, final_grid(model)) + pooler(d, d, text_n)


def captions(model: FIBERModel) -> Cost:
    """Returns the parameters of the projections that only captioning runs (FIBER, 1.6)."""
    c = model.image.final_width
    widths = [model.image.width << (stage - 1) for stage, _, _ in model.fusion.plan]
    return sum((Cost(linear(c, width, 0).parameters) for width in widths if width != c), Cost())


def fiber(model: FIBERModel, text_n: float, runs: Runs) -> dict[str, Cost]:
    """Returns component -> cost of a pair."""
    stage, at, layer = model.fusion.plan[0]
    image, image_top = swin(model.image, model.image_size, (stage - 1, at))
    text, text_top = roberta(model.text, text_n, layer)
    fusion = (gated(model, text_n) + poolers(model, text_n)).run(runs.fused)
    return {
        "image tower": image.run(runs.images) + image_top.run(runs.unimodal_images + runs.fused),
        "text tower": text.run(runs.texts) + text_top.run(runs.unimodal_texts + runs.fused),
        "fusion": fusion + (captions(model) if model.captioning else Cost()),
    }


def co_attention(model: METERModel, text_n: float) -> Cost:
    """Returns the cost of METER's layers: in both streams attention to itself and the other, perceptron."""
    d, f = model.text.width, model.fusion.feed_forward
    image_n = final_grid(model)
    streams = ((text_n, image_n), (image_n, text_n))
    layer = sum((block(d, f, n) + cross_attention(d, d, n, other) + norm(d) for n, other in streams), Cost())
    return model.fusion.layers * layer


def meter(model: METERModel, text_n: float, runs: Runs) -> dict[str, Cost]:
    """Returns component -> cost of a pair."""
    image, image_norm = swin(model.image, model.image_size, (len(model.image.depths), 0))
    text, _ = roberta(model.text, text_n, model.text.layers)
    return {
        "image tower": (image + image_norm).run(runs.images),
        "text tower": text.run(runs.texts),
        "fusion": (co_attention(model, text_n) + poolers(model, text_n)).run(runs.fused),
    }
