"""What a recipe's micro-batch keeps between forward and backward, by formula: no torch, no data.

`kept` has the rules, `kept_svl` and its kin the systems; here they meet the recipe: how often a
micro-batch runs each part (`passes`), what is recomputed, and the heads.

Legend: P pairs of a micro-batch, K masked positions' capacity, V vocabulary, d text width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from dsvlp.accounting.flops import COCO_STUFF_CLASSES, LXMERT_ANSWERS, VISUAL_GENOME_CLASSES
from dsvlp.accounting.flops_fiber import final_grid, grid
from dsvlp.accounting.flops_pixelbert import cells
from dsvlp.accounting.flops_svl import grid_tokens, segmentation_map
from dsvlp.accounting.kept import STATE, Activations, Part, Rule, activations
from dsvlp.accounting.kept_fiber import fiber, meter
from dsvlp.accounting.kept_pixelbert import pixelbert
from dsvlp.accounting.kept_semvlp import semvlp
from dsvlp.accounting.kept_svl import svl
from dsvlp.accounting.passes import hard_negatives, runs
from dsvlp.recipe import MOP, FIBERModel, METERModel, PixelBERTModel, Recipe, SemVLPModel, SVLModel, Towers
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
    if isinstance(table, METERModel):
        return meter(table, text_n, rule, run, pairs)
    if isinstance(table, PixelBERTModel):
        return pixelbert(table, text_n, rule, run, pairs)
    return semvlp(table, text_n, rule, run, pairs)


def prefix_numbers(recipe: Recipe) -> float:
    """Returns how many numbers a pair's states below the fusion have: what gathered negatives move."""
    table = recipe.model
    if isinstance(table, FIBERModel):
        stage = table.fusion.plan[0][0] - 1
        image = grid(table.image, table.image_size, stage) * (table.image.width << stage)
    elif isinstance(table, METERModel):
        image = final_grid(table) * table.image.final_width
    elif isinstance(table, SVLModel):
        image = (table.visual_queries or grid_tokens(table)) * table.text.width
    elif isinstance(table, PixelBERTModel):
        image = cells(table) * table.text.width
    else:
        image = (table.objects + 1) * table.text.width
    return image / recipe.data.captions_per_image + table.text.max_length * table.text.width


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
        streams = 2 if isinstance(table, Towers) else 1
        yield Part(pairs * (1 + hard_negatives(recipe)) * rule.product * streams * d)
    if objectives.qa is not None:
        known = facts.answers if facts else None
        answers = len(known.ids) if known else LXMERT_ANSWERS
        wide = 2 * d  # its hidden layer, in GELU, in the norm, and read
        yield Part(pairs * (rule.product * d + rule.product * wide + rule.norm(1, wide)))
        yield Part(pairs * (rule.read() * wide + STATE * answers))
    if isinstance(table, SVLModel):
        yield from _grid_heads(recipe, table, rule, pairs, facts)
    if isinstance(table, SemVLPModel) and objectives.mop is not None:
        yield _object_head(table, objectives.mop, rule, pairs)


def _object_head(table: SemVLPModel, mop: MOP, rule: Rule, pairs: int) -> Part:
    """Returns MOP's head at the objects that it predicts: transform, regression, classes."""
    d, rows = table.text.width, pairs * table.objects
    if mop.predicted == "masked":
        rows = masked_capacity(rows, mop.probability)
    transform = 2 * rule.read() * d + rule.product * d + rule.norm(1, d) + rule.again(1) * d
    return Part(rows * (transform + STATE * (2 * table.feature_width + mop.classes)))


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
