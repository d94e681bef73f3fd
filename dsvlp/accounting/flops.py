"""Parameters and FLOPs of a recipe, by component, from formulas: no torch, no data, no GPU.

One multiply-add is 2 FLOP; normalisations, activations and additions are left out, as usual. A
training step costs 3 forwards. These are the model's FLOPs: neither recomputation by activation
checkpointing counts nor the padding of MLM's masked positions to a fixed capacity. A test
holds every formula against the built model, at full size on the meta device and counted on a tiny one.

Legend: d text width.
"""

from __future__ import annotations

from dsvlp.accounting.cost import Cost, linear, norm, pooler
from dsvlp.accounting.flops_fiber import fiber, final_grid, meter
from dsvlp.accounting.flops_svl import grid_tokens, segmentation_map, svl
from dsvlp.accounting.passes import Runs, hard_negatives, runs
from dsvlp.recipe import FIBERModel, Recipe, SVLModel
from dsvlp.types import DataFacts

COCO_STUFF_CLASSES = 171  # what a price assumes where the data's label table is not known yet
VISUAL_GENOME_CLASSES = 1600


def components(
    recipe: Recipe, *, text_tokens: float | None = None, facts: DataFacts | None = None
) -> dict[str, Cost]:
    """Returns component -> cost of one image-text pair.

    Args:
        recipe: the recipe.
        text_tokens: mean real length of a text; None: the full `max_length`.
        facts: the data's label tables; None: COCO-Stuff's and Visual Genome's sizes.
    """
    text_n = float(text_tokens or recipe.model.text.max_length)
    return model_costs(recipe, text_n) | {"heads": text_heads(recipe, text_n) + image_heads(recipe, facts)}


def model_costs(recipe: Recipe, text_n: float, times: Runs | None = None) -> dict[str, Cost]:
    """Returns component -> cost of a pair, without the objectives' heads.

    Args:
        recipe: the recipe.
        text_n: length of a text.
        times: how often each part runs; None: as in a training step.
    """
    table, times = recipe.model, times or runs(recipe)
    if isinstance(table, SVLModel):
        return svl(table, text_n, times)
    if isinstance(table, FIBERModel):
        return fiber(table, text_n, times)
    return meter(table, text_n, times)


def text_heads(recipe: Recipe, text_n: float) -> Cost:
    """Returns the cost of the heads of ITC, ITM, and MLM at the masked positions alone."""
    table, objectives, cost = recipe.model, recipe.objectives, Cost()
    d, vocabulary, alone = table.text.width, table.text.vocabulary, runs(recipe)
    if objectives.itc is not None:
        width, cells = d, 0
        if not isinstance(table, SVLModel):
            width, cells = table.image.final_width, final_grid(table)
        image, text = pooler(width, d, cells), pooler(d, d, 1)
        keys = (recipe.batch.contrastive_pairs or recipe.batch.micro_pairs or 0) + objectives.itc.queue
        cost += image.run(alone.unimodal_images) + text.run(alone.unimodal_texts)
        cost += Cost(1, 2 * 2.0 * d * keys)  # the temperature; both directions' similarities
    if objectives.itm is not None:
        streams = 1 if isinstance(table, SVLModel) else 2
        cost += linear(streams * d, 2, 1 + hard_negatives(recipe))
    if objectives.mlm is not None:
        rows = objectives.mlm.probability * text_n
        cost += linear(d, d, rows) + norm(d) + linear(d, vocabulary, rows)
        if objectives.mlm.tied:  # the decoder is the word table
            cost += Cost(-d * vocabulary)
    return cost


def image_heads(recipe: Recipe, facts: DataFacts | None) -> Cost:
    """Returns the cost of the heads of SSUL, SEGL and SPL; only SVL has the grid that they read."""
    table, objectives, cost = recipe.model, recipe.objectives, Cost()
    if not isinstance(table, SVLModel):
        return cost
    d = table.text.width
    if objectives.ssul is not None:
        cost += linear(d, 3, grid_tokens(table))
    if objectives.segl is not None:
        known = facts.segmentation if facts else None
        classes = len(known.ids) if known else COCO_STUFF_CLASSES
        channels, cells = segmentation_map(table, objectives.segl)
        cost += linear(channels, classes + (objectives.segl.unlabelled == "class"), cells)
    if objectives.spl is not None:
        known = facts.boxes if facts else None
        classes = len(known.ids) if known else VISUAL_GENOME_CLASSES
        cost += linear(d, classes + (objectives.spl.unmatched == "no_object"), table.visual_queries)
    return cost


def total(costs: dict[str, Cost]) -> Cost:
    """Returns the sum of all components."""
    return sum(costs.values(), Cost())


def parameters(recipe: Recipe, facts: DataFacts | None = None) -> int:
    """Returns the number of trainable parameters of a recipe's system."""
    return total(components(recipe, facts=facts)).parameters


def train_flops(recipe: Recipe, *, text_tokens: float | None = None, facts: DataFacts | None = None) -> float:
    """Returns the FLOP of one pair's forward and backward: three forwards."""
    return 3 * total(components(recipe, text_tokens=text_tokens, facts=facts)).forward
