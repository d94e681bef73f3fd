"""Parameters and FLOPs of a recipe, by component, from formulas: no torch, no data, no GPU.

One multiply-add is 2 FLOP; normalisations, activations and additions are left out, as usual. A
training step costs 3 forwards. These are the model's FLOPs: neither recomputation by activation
checkpointing counts nor the padding of MLM's masked positions to a fixed capacity. A test
holds every formula against the built model, at full size on the meta device and counted on a tiny one.

Legend: n tokens, d width, f feed-forward width, V vocabulary.
"""

from __future__ import annotations

from dsvlp.accounting.cost import Cost, attention, block, linear, norm, table
from dsvlp.accounting.resnet import trunk
from dsvlp.recipe import BERT, SEGL, Recipe, ResNet, SVLModel, ViT
from dsvlp.types import DataFacts

POSITIONS = 512  # rows of BERT's position table, whatever the recipe's max_length
COCO_STUFF_CLASSES = 171  # what a price assumes where the data's label table is not known yet
VISUAL_GENOME_CLASSES = 1600


def vit(tower: ViT, image_size: int) -> Cost:
    """Returns the cost of the ViT image tower without a class token (SVL, S3 and S3a)."""
    n, d = (image_size // tower.patch_size) ** 2, tower.width
    patches = linear(3 * tower.patch_size**2, d, n)
    return patches + table(n, d) + tower.layers * block(d, int(d * tower.mlp_ratio), n) + norm(d)


def resnet(tower: ResNet, image_size: int, d: int) -> Cost:
    """Returns the cost of the ResNet image tower with projection and positions (SVL, S4)."""
    dilated = tower.segmentation == "dilate5"
    cost, (_, channels) = trunk(tower.name, image_size, dilated=dilated)
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
    stride = model.image.patch_size if isinstance(model.image, ViT) else 32
    return (model.image_size // stride) ** 2


def segmentation_map(model: SVLModel, segl: SEGL) -> tuple[int, int]:
    """Returns channels and cells of the map that SEGL's head reads (S4a)."""
    cells = grid_tokens(model)
    if isinstance(model.image, ViT) or segl.at == "post" or model.image.segmentation == "upsample":
        return model.text.width, cells
    dilated = model.image.segmentation == "dilate5"
    channels, _ = trunk(model.image.name, model.image_size)[1]
    return (model.text.width if dilated else channels), 4 * cells


def heads(recipe: Recipe, text_n: float, facts: DataFacts | None) -> Cost:
    """Returns the cost of the objectives' heads. MLM's decoder shares the word table, its bias is its own."""
    model, objectives, cost = recipe.model, recipe.objectives, Cost()
    d, cells = model.text.width, grid_tokens(model)
    if objectives.itm is not None:
        cost += linear(d, 2, 1)
    if objectives.mlm is not None:
        rows, vocabulary = objectives.mlm.probability * text_n, model.text.vocabulary
        cost += linear(d, d, rows) + norm(d) + Cost(vocabulary, 2.0 * d * vocabulary * rows)
    if objectives.ssul is not None:
        cost += linear(d, 3, cells)
    if objectives.segl is not None:
        known = facts.segmentation if facts else None
        classes = len(known.ids) if known else COCO_STUFF_CLASSES
        channels, map_cells = segmentation_map(model, objectives.segl)
        cost += linear(channels, classes + (objectives.segl.unlabelled == "class"), map_cells)
    if objectives.spl is not None:
        known = facts.boxes if facts else None
        classes = len(known.ids) if known else VISUAL_GENOME_CLASSES
        cost += linear(d, classes + (objectives.spl.unmatched == "no_object"), model.visual_queries)
    return cost


def components(
    recipe: Recipe, *, text_tokens: float | None = None, facts: DataFacts | None = None
) -> dict[str, Cost]:
    """Returns component -> cost of one image-text pair.

    Args:
        recipe: the recipe.
        text_tokens: mean real length of a text; None: the full `max_length`.
        facts: the data's label tables; None: COCO-Stuff's and Visual Genome's sizes.
    """
    model = recipe.model
    text_n = float(text_tokens or model.text.max_length)
    d, grid = model.text.width, grid_tokens(model)
    image_n = model.visual_queries or grid
    tower = (
        vit(model.image, model.image_size)
        if isinstance(model.image, ViT)
        else resnet(model.image, model.image_size, d)
    )
    share = 1 / recipe.data.captions_per_image  # an image is encoded once for all its captions
    return {
        "image tower": Cost(tower.parameters, tower.forward * share),
        "text tower": bert(model.text, text_n),
        "decoder of queries": decoder(model, grid),
        "cross-modality layers": model.cross_layers * cross_layer(model, text_n, image_n) + linear(d, d, 1),
        "heads": heads(recipe, text_n, facts),
    }


def total(costs: dict[str, Cost]) -> Cost:
    """Returns the sum of all components."""
    return sum(costs.values(), Cost())


def parameters(recipe: Recipe, facts: DataFacts | None = None) -> int:
    """Returns the number of trainable parameters of a recipe's system."""
    return total(components(recipe, facts=facts)).parameters


def train_flops(recipe: Recipe, *, text_tokens: float | None = None, facts: DataFacts | None = None) -> float:
    """Returns the FLOP of one pair's forward and backward: three forwards."""
    return 3 * total(components(recipe, text_tokens=text_tokens, facts=facts)).forward
