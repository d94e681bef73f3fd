"""What a recipe's micro-batch keeps between forward and backward, by formula: no torch, no data.

`kept` has the rules, `kept_svl` and `kept_fiber` the systems; here they meet the recipe: how often a
micro-batch runs each part (`passes`), what is recomputed, and the heads.

Legend: P pairs of a micro-batch, K masked positions' capacity, V vocabulary, d text width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from dsvlp.accounting.flops import COCO_STUFF_CLASSES, VISUAL_GENOME_CLASSES
from dsvlp.accounting.flops_fiber import final_grid, grid
from dsvlp.accounting.flops_svl import grid_tokens, segmentation_map
from dsvlp.accounting.kept import STATE, Activations, Part, Rule, activations
from dsvlp.accounting.kept_fiber import fiber, meter
from dsvlp.accounting.kept_svl import svl
from dsvlp.accounting.passes import hard_negatives, runs
from dsvlp.recipe import FIBERModel, METERModel, Recipe, SVLModel
from dsvlp.types import DataFacts


def of_micro_batch(
    recipe: Recipe, pairs: int, *, cpu: bool = False, facts: DataFacts | None = None
) -> Activations:
    """Returns the bytes that a micro-batch of so many pairs keeps on a device; texts at their full length.

    Args:
        recipe: owner of the precision, of what is shared and of what is recomputed.
        pairs: P.
        cpu: as torch keeps them on a CPU.
        facts: the data's label tables; None: COCO-Stuff's and Visual Genome's sizes.
    """
    rule = Rule(half=recipe.engine.precision == "bf16", cpu=cpu)
    parts = [*_model(recipe, rule, pairs), *_heads(recipe, rule, pairs, facts)]
    return activations(parts, recipe.engine.activation_checkpointing)


def _model(recipe: Recipe, rule: Rule, pairs: int) -> Iterator[Part]:
    table, text_n, run = recipe.model, float(recipe.model.text.max_length), runs(recipe)
    if isinstance(table, SVLModel):
        return svl(table, text_n, rule, run, pairs)
    if isinstance(table, FIBERModel):
        return fiber(table, text_n, rule, run, pairs)
    return meter(table, text_n, rule, run, pairs)


def prefix_numbers(recipe: Recipe) -> float:
    """Returns how many numbers a pair's states below the fusion have: what gathered negatives move."""
    table = recipe.model
    if isinstance(table, SVLModel):
        cells = (table.visual_queries or grid_tokens(table)) * table.text.width
    elif isinstance(table, METERModel):
        cells = final_grid(table) * table.image.final_width
    else:
        stage = table.fusion.plan[0][0] - 1
        cells = grid(table.image, table.image_size, stage) * (table.image.width << stage)
    return cells / recipe.data.captions_per_image + table.text.max_length * table.text.width


def masked_capacity(positions: int, share: float) -> int:
    """Returns K, the positions that MLM's head runs on: mean and eight deviations, as `objectives.mlm`."""
    return min(positions, math.ceil(positions * share + 8 * math.sqrt(positions * share * (1 - share))))


def _heads(recipe: Recipe, rule: Rule, pairs: int, facts: DataFacts | None) -> Iterator[Part]:
    """Yields the heads: what a cross-entropy keeps is its log-softmax, in fp32."""
    table, objectives = recipe.model, recipe.objectives
    d, length = table.text.width, table.text.max_length
    if objectives.mlm is not None:
        rows = masked_capacity(pairs * length, objectives.mlm.probability)
        transform = rule.read() * d + rule.product * d + rule.norm(1, d) + rule.read() * d
        yield Part(rows * (transform + STATE * table.text.vocabulary))
    if objectives.itc is not None:
        keys = (recipe.batch.contrastive_pairs or pairs) + objectives.itc.queue
        # Of both directions the similarities, divided and masked, and their log-softmax; the vectors.
        yield Part(pairs * (2 * keys * (2 * STATE + 1) + 6 * STATE * d))
    if objectives.itm is not None:
        streams = 1 if isinstance(table, SVLModel) else 2
        yield Part(pairs * (1 + hard_negatives(recipe)) * rule.product * streams * d)
    if isinstance(table, SVLModel):
        yield from _grid_heads(recipe, table, rule, pairs, facts)


def _grid_heads(
    recipe: Recipe, table: SVLModel, rule: Rule, pairs: int, facts: DataFacts | None
) -> Iterator[Part]:
    """Yields the heads of SSUL, SEGL and SPL, which only SVL has."""
    objectives, d, images = recipe.objectives, table.text.width, pairs / recipe.data.captions_per_image
    if objectives.ssul is not None:
        yield Part(rule.read() * d * grid_tokens(table)).times(images)
    if objectives.segl is not None:
        known = facts.segmentation if facts else None
        classes = len(known.ids) if known else COCO_STUFF_CLASSES
        channels, cells = segmentation_map(table, objectives.segl)
        yield Part(cells * (rule.read() * channels + STATE * classes)).times(images)
    if objectives.spl is not None:
        known = facts.boxes if facts else None
        classes = len(known.ids) if known else VISUAL_GENOME_CLASSES
        yield Part(table.visual_queries * (rule.read() * d + 2 * STATE * classes)).times(images)
