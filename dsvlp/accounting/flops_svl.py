"""SVL by formula: two towers, cross-modality layers on top (specification S1 to S8).

Legend: n tokens, d width, f feed-forward width.
"""

from __future__ import annotations

from dsvlp.accounting.cost import Cost, attention, block, linear, norm, table
from dsvlp.accounting.passes import Runs
from dsvlp.accounting.resnet import trunk
from dsvlp.recipe import BERT, SEGL, ResNet, SVLModel, ViT

POSITIONS = 512  # rows of BERT's position table, whatever the recipe's max_length


def vit(tower: ViT, image_size: int) -> Cost:
    """Returns the cost of the ViT image tower without a class token (SVL, S3 and S3a)."""
    n, d = (image_size // tower.patch_size) ** 2, tower.width
    patches = linear(3 * tower.patch_size**2, d, n)
    return patches + table(n, d) + tower.layers * block(d, int(d * tower.mlp_ratio), n) + norm(d)


def resnet(tower: ResNet, image_size: int, d: int) -> Cost:
    """Returns the cost of the ResNet image tower with projection and positions (SVL, S4)."""
    dilated = tower.segmentation == "dilate5"
    cost, (_, channels) = trunk(tower.name, (image_size, image_size), dilated=dilated)
    cells = (image_size // 32) ** 2
    return cost + linear(channels, d, 4 * cells if dilated else cells) + table(cells, d)


def bert(tower: BERT, n: float) -> Cost:
    """Returns the cost of the text tower; its pooler is not used (SVL, S5a)."""
    d = tower.width
    embeddings = table(tower.vocabulary + POSITIONS + 2, d) + norm(d)
    return embeddings + tower.layers * block(d, tower.feed_forward, n)


def cross_layer(model: SVLModel, text_n: float, image_n: int) -> Cost:
    """Returns the cost of one cross-modality layer: cross-attention, self-attention, perceptron (S6)."""
    d, f = model.text.width, model.text.feed_forward
    to_image, to_text = attention(d, text_n, image_n) + norm(d), attention(d, image_n, text_n) + norm(d)
    if model.share_cross_attention:
        to_text = Cost(0, to_text.forward)
    return to_image + to_text + block(d, f, text_n) + block(d, f, image_n)


def decoder(model: SVLModel, image_n: int) -> Cost:
    """Returns the cost of SPL's queries, the grid's positions and the one decoder layer."""
    d, queries = model.text.width, model.visual_queries
    if not queries:
        return Cost()
    layer = block(d, model.text.feed_forward, queries) + attention(d, queries, image_n) + norm(d)
    return table(queries, d) + table(image_n, d) + layer


def grid_tokens(model: SVLModel) -> int:
    """Returns the number of cells of the visual grid."""
    return (model.image_size // model.stride) ** 2


def segmentation_map(model: SVLModel, segl: SEGL) -> tuple[int, int]:
    """Returns channels and cells of the map that SEGL's head reads (S4a)."""
    cells = grid_tokens(model)
    if isinstance(model.image, ViT) or segl.at == "post" or model.image.segmentation == "upsample":
        return model.text.width, cells
    dilated = model.image.segmentation == "dilate5"
    channels, _ = trunk(model.image.name, (model.image_size, model.image_size))[1]
    return (model.text.width if dilated else channels), 4 * cells


def svl(model: SVLModel, text_n: float, runs: Runs) -> dict[str, Cost]:
    """Returns component -> cost of a pair; the towers have no rest of their own above the fusion's start."""
    d, grid = model.text.width, grid_tokens(model)
    image = model.image
    tower = vit(image, model.image_size) if isinstance(image, ViT) else resnet(image, model.image_size, d)
    image_n = model.visual_queries or grid
    cross = model.cross_layers * cross_layer(model, text_n, image_n) + linear(d, d, 1)
    return {
        "image tower": tower.run(runs.images),
        "text tower": bert(model.text, text_n).run(runs.texts),
        "decoder of queries": decoder(model, grid).run(runs.fused),
        "cross-modality layers": cross.run(runs.fused),
    }
