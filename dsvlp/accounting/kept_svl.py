"""What SVL keeps between forward and backward: the counterpart of `flops_svl`.

Legend: n image tokens, l text tokens, d width, f feed-forward width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator

from dsvlp.accounting import kept_cnn
from dsvlp.accounting.flops_svl import grid_tokens
from dsvlp.accounting.kept import STATE, Part, Rule
from dsvlp.accounting.passes import Runs
from dsvlp.recipe import ResNet, SVLModel, ViT

CROSS_DROPOUTS = 3  # places of a stream in a cross-modality layer


def svl(model: SVLModel, text_n: float, rule: Rule, runs: Runs, pairs: int) -> Iterator[Part]:
    """Yields the model's parts as a micro-batch of so many pairs runs them."""
    image, grid = model.image, grid_tokens(model)
    tower = vit(image, model.image_size, rule) if isinstance(image, ViT) else resnet(image, model, rule)
    yield from (part.times(pairs * runs.images) for part in tower)
    yield from (part.times(pairs * runs.texts) for part in bert(model, text_n, rule))
    if model.visual_queries:
        yield decoder(model, grid, rule).times(pairs * runs.images)
    layers = (
        cross_layer(model, text_n, model.visual_queries or grid, rule, i) for i in range(model.cross_layers)
    )
    yield from (part.times(pairs * runs.fused) for part in layers)
    yield Part(2 * rule.product * model.text.width).times(pairs * runs.fused)  # the pooler


def vit(tower: ViT, image_size: int, rule: Rule) -> Iterator[Part]:
    """Yields the parts of the ViT tower for one image, and the final norm (SVL, S3)."""
    n, d = (image_size // tower.patch_size) ** 2, tower.width
    yield Part(rule.read() * 3 * image_size**2)
    block = rule.pre_norm_block(n, d, int(d * tower.mlp_ratio), tower.heads)
    yield from (Part(block, STATE * n * d, index) for index in range(tower.layers))
    yield Part(rule.norm(n, d))


def bert(model: SVLModel, n: float, rule: Rule) -> Iterator[Part]:
    """Yields the parts of the text tower for one text (SVL, S5)."""
    tower = model.text
    d = tower.width
    yield Part(rule.norm(n, d) + rule.dropout(n * d, tower.dropout))
    block = rule.post_norm_block(n, d, tower.feed_forward, tower.heads, tower.dropout)
    yield from (Part(block, STATE * n * d, index) for index in range(tower.layers))


def cross_layer(model: SVLModel, text_n: float, image_n: float, rule: Rule, index: int) -> Part:
    """Returns one cross-modality layer for one pair: cross- and self-attention, perceptron (S6)."""
    text = model.text
    d, kept = text.width, 0.0
    for n, other in ((text_n, image_n), (image_n, text_n)):
        crossing = n * d * rule.read(3) + rule.mixing(n, other, d, text.heads, text.dropout)
        itself = n * d * rule.read(3) + rule.mixing(n, n, d, text.heads, text.dropout)
        dropped = (CROSS_DROPOUTS - 1) * rule.dropout(n * d, text.dropout)
        kept += crossing + itself + dropped + 3 * rule.norm(n, d)
        kept += rule.feed_forward(n, d, text.feed_forward, text.dropout)
    return Part(kept, STATE * (text_n + image_n) * d, index)


def decoder(model: SVLModel, image_n: int, rule: Rule) -> Part:
    """Returns SPL's decoder for one image: queries look at themselves and at the grid."""
    text, q = model.text, model.visual_queries
    d = text.width
    cross = rule.read() * (q + 2 * image_n) * d + rule.mixing(q, image_n, d, text.heads, text.dropout)
    block = rule.post_norm_block(q, d, text.feed_forward, text.heads, text.dropout)
    return Part(block + cross + rule.norm(q, d) + rule.dropout(q * d, text.dropout))


def resnet(tower: ResNet, model: SVLModel, rule: Rule) -> Iterator[Part]:
    """Yields the parts of the ResNet tower for one image (S4)."""
    size = (model.image_size, model.image_size)
    yield from kept_cnn.stages(tower.name, size, rule, dilated=tower.segmentation == "dilate5")
    yield Part(rule.product * 2 * model.text.width * (model.image_size // model.stride) ** 2)
