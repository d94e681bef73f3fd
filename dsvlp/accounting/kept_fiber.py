"""What FIBER and METER keep between forward and backward: the counterpart of `flops_fiber`.

Legend: n image tokens of a stage, c its width, m text tokens, d text width, w a window's side, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from dsvlp.accounting.flops_fiber import final_grid, grid
from dsvlp.accounting.kept import STATE, Part, Rule
from dsvlp.accounting.passes import Runs
from dsvlp.recipe import FIBERModel, METERModel, RoBERTa, Swin, Towers

Blocks = list[list[Part]]
"""For each block or layer of a tower: itself, and the merging behind it where a stage ends."""


def fiber(model: FIBERModel, text_n: float, rule: Rule, runs: Runs, pairs: int) -> Iterator[Part]:
    """Yields the model's parts as a micro-batch of so many pairs runs them."""
    plan = [
        (sum(model.image.depths[: stage - 1]) + at, stage - 1, layer)
        for stage, at, layer in model.fusion.plan
    ]
    block, _, layer = plan[0]
    image, text = swin(model.image, model.image_size, rule), roberta(model.text, text_n, rule)
    yield from _run([image_embedding(model, rule), *chain(*image[:block])], pairs * runs.images)
    yield from _run([text_embedding(model.text, text_n, rule), *chain(*text[:layer])], pairs * runs.texts)
    norm = Part(rule.norm(final_grid(model), model.image.final_width))
    yield from _run([*chain(*image[block:]), norm], pairs * runs.unimodal_images)
    yield from _run(chain(*text[layer:]), pairs * runs.unimodal_texts)
    yield from contrast_heads(model, text_n, rule, runs, pairs)
    for k, (number, stage, text_number) in enumerate(plan):
        image[number][0] = fused_pair(model, stage, image[number][0], text[text_number][0], text_n, rule, k)
        text[text_number] = []
    tops = chain(*image[block:], *text[layer:], [fusion_end(model, text_n, rule)])
    yield from _run(tops, pairs * runs.fused)


def meter(model: METERModel, text_n: float, rule: Rule, runs: Runs, pairs: int) -> Iterator[Part]:
    """Yields the model's parts as a micro-batch of so many pairs runs them; the towers are all prefix."""
    image, text = swin(model.image, model.image_size, rule), roberta(model.text, text_n, rule)
    norm = Part(rule.norm(final_grid(model), model.image.final_width))
    yield from _run([image_embedding(model, rule), *chain(*image), norm], pairs * runs.images)
    yield from _run([text_embedding(model.text, text_n, rule), *chain(*text)], pairs * runs.texts)
    yield from contrast_heads(model, text_n, rule, runs, pairs)
    layers = (co_attention(model, text_n, rule, index) for index in range(model.fusion.layers))
    yield from _run([*layers, fusion_end(model, text_n, rule)], pairs * runs.fused)


def _run(parts: Iterable[Part], rows: float) -> Iterator[Part]:
    """Yields parts for so many rows; each tower's passes are taken for one call."""
    return (part.times(rows) for part in parts if rows)


def image_embedding(model: Towers, rule: Rule) -> Part:
    """Returns the patches' convolution and norm for one image."""
    cells = grid(model.image, model.image_size, 0)
    return Part(rule.read() * 3 * model.image_size**2 + rule.norm(cells, model.image.width))


def text_embedding(tower: RoBERTa, n: float, rule: Rule) -> Part:
    """Returns the embeddings' norm and dropout for one text."""
    return Part(rule.norm(n, tower.width) + rule.dropout(n * tower.width, tower.dropout))


def swin(tower: Swin, image_size: int, rule: Rule) -> Blocks:
    """Returns the blocks of the image tower, counted through all stages, for one image."""
    out: Blocks = []
    for stage, depth in enumerate(tower.depths):
        n, c = grid(tower, image_size, stage), tower.width << stage
        for at in range(depth):
            out.append([swin_block(tower, image_size, stage, shifted=at % 2 == 1, rule=rule, index=len(out))])
        if stage + 1 < len(tower.depths):  # four cells side by side, normed and read
            out[-1].append(Part(rule.norm(n / 4, 4 * c) + rule.read() * n * c))
    return out


def swin_block(tower: Swin, image_size: int, stage: int, *, shifted: bool, rule: Rule, index: int) -> Part:
    """Returns a block for one image: attention in windows with learnt biases, perceptron.

    A shifted block's windows are copied back into their places before the projection.
    """
    n, c, heads = grid(tower, image_size, stage), tower.width << stage, tower.heads[stage]
    side = image_size // tower.patch_size >> stage
    w = min(tower.window_at(image_size), side)
    windows = (side // w) ** 2 if shifted else 1
    attention = rule.norm(n, c) + rule.read() * n * c + window_mixing(n, w**2, c, heads, windows, rule)
    perceptron = rule.norm(n, c) + rule.feed_forward(n, c, int(c * tower.mlp_ratio))
    biases = 0 if rule.cpu else rule.product * heads * windows * w**4
    return Part(attention + perceptron, STATE * n * c, index, biases)


def window_mixing(n: int, keys: int, c: int, heads: int, windows: int, rule: Rule) -> float:
    """Returns what attention in windows of `keys` cells keeps: of each cell one query, key, value, output."""
    states = rule.product * 4 * n * c
    if rule.cpu:  # not fused for the biases' sake: the probabilities; the output is copied always
        return states + rule.product * n * keys * heads
    return states + 4 * n * heads + (rule.product * n * c if windows > 1 else 0)


def roberta(tower: RoBERTa, n: float, rule: Rule) -> Blocks:
    """Returns the layers of the text tower for one text."""
    d = tower.width
    layer = rule.post_norm_block(n, d, tower.feed_forward, tower.heads, tower.dropout)
    return [[Part(layer, STATE * n * d, index)] for index in range(tower.layers)]


def fused_pair(
    model: FIBERModel, stage: int, block: Part, layer: Part, text_n: float, rule: Rule, index: int
) -> Part:
    """Returns a block and a layer that read each other, for one pair (FIBER, 1.2 and 1.4).

    Beside both: each stream's self-attention output as the query's input (normed in the image), the
    cross-attention, and its result, which the gate multiplies. In fp32 what the keys and values read is
    kept already.
    """
    n, c = grid(model.image, model.image_size, stage), model.image.width << stage
    text = model.text
    d, m, share = text.width, text_n, text.dropout
    query = rule.norm(n, c) + rule.read() * n * c if model.fusion.image_query_norm else rule.product * n * c
    image = query + rule.mixing(n, m, c, model.image.heads[stage]) + rule.product * n * c
    image += rule.again(2) * m * d
    words = 2 * rule.product * m * d + rule.mixing(m, n, d, text.heads, share)
    words += rule.again(2) * n * c + rule.dropout(m * d, share)
    return Part(block.kept + layer.kept + image + words, STATE * (n * c + m * d), index, block.fixed)


def co_attention(model: METERModel, text_n: float, rule: Rule, index: int) -> Part:
    """Returns one of METER's layers for one pair."""
    d, f, heads, share = model.text.width, model.fusion.feed_forward, model.fusion.heads, model.fusion.dropout
    image_n, kept = final_grid(model), 0.0
    for n, other in ((text_n, image_n), (image_n, text_n)):
        cross = rule.read() * n * d + rule.again(2) * other * d + rule.mixing(n, other, d, heads, share)
        kept += rule.post_norm_block(n, d, f, heads, share) + cross
        kept += rule.norm(n, d) + rule.dropout(n * d, share)
    return Part(kept, STATE * (text_n + image_n) * d, index)


def fusion_end(model: Towers, text_n: float, rule: Rule) -> Part:
    """Returns both transforms' inputs, the text's states that its pooler reads, and the joint feature."""
    n, c, d = final_grid(model), model.image.final_width, model.text.width
    return Part(rule.read() * (n * c + text_n * d) + rule.product * (text_n * d + 6 * d))


def contrast_heads(model: Towers, text_n: float, rule: Rule, runs: Runs, pairs: int) -> Iterator[Part]:
    """Yields what ITC's transforms read: all final cells; of the text in fp32 the storage of all words."""
    n, c, d = final_grid(model), model.image.final_width, model.text.width
    yield Part(rule.read() * n * c).times(pairs * runs.unimodal_images)
    yield Part(2 * d if rule.half else STATE * text_n * d).times(pairs * runs.unimodal_texts)
