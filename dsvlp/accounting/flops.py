"""Parameters and FLOPs of a recipe, by component, from formulas: no torch, no data, no GPU.

(But for a CNN that no formula knows, see `cnn`.)

One multiply-add is 2 FLOP; normalisations, activations and additions are left out, as usual. A
training step costs 3 forwards. These are the model's FLOPs: neither recomputation by activation
checkpointing counts nor the padding of MLM's masked positions to a fixed capacity. A test
holds every formula against the built model, at full size on the meta device and counted on a tiny one.

Legend: d text width.
"""

from __future__ import annotations

from dsvlp.accounting.cost import Cost, linear, norm, pooler
from dsvlp.accounting.flops_fiber import fiber, final_grid, meter
from dsvlp.accounting.flops_pixelbert import pixelbert
from dsvlp.accounting.flops_semvlp import semvlp
from dsvlp.accounting.flops_svl import grid_tokens, segmentation_map, svl
from dsvlp.accounting.passes import Runs, hard_negatives, runs
from dsvlp.recipe import FIBERModel, METERModel, PixelBERTModel, Recipe, SemVLPModel, SVLModel, Towers
from dsvlp.types import DataFacts

COCO_STUFF_CLASSES = 171  # what a price assumes where the data's label table is not known yet
VISUAL_GENOME_CLASSES = 1600
LXMERT_ANSWERS = 9500

_ONCE = Runs(images=1, texts=1, unimodal_images=0, unimodal_texts=0, fused=1)


def components(
    recipe: Recipe, *, text_tokens: float | None = None, facts: DataFacts | None = None
) -> dict[str, Cost]:
    """Returns component -> cost of one image-text pair.

    Args:
        recipe: the recipe.
        text_tokens: mean real length of a text; None: the full `max_length`.
        facts: the data's label tables; None: the sizes of COCO-Stuff, Visual Genome and LXMERT's answers.
    """
    text_n = float(text_tokens or recipe.model.text.max_length)
    heads = text_heads(recipe, text_n) + image_heads(recipe, facts) + object_heads(recipe, facts)
    return _model(recipe.model, text_n, runs(recipe)) | {"heads": heads}


def inference(recipe: Recipe, text_n: float) -> dict[str, Cost]:
    """Returns component -> cost of encoding and fusing one pair in evaluation, without the objectives' heads.

    Pixel-BERT then keeps all pixels, SemVLP reads in its mode of inference.
    """
    table = recipe.model
    if isinstance(table, PixelBERTModel):
        table = table.model_copy(update={"pixels": 0})
    elif isinstance(table, SemVLPModel):
        table = table.model_copy(update={"mode_schedule": table.inference})
    return _model(table, text_n, _ONCE)


def _model(
    table: SVLModel | FIBERModel | METERModel | PixelBERTModel | SemVLPModel, text_n: float, times: Runs
) -> dict[str, Cost]:
    """Returns component -> cost of a pair whose parts run so many times, without the objectives' heads."""
    if isinstance(table, SVLModel):
        return svl(table, text_n, times)
    if isinstance(table, FIBERModel):
        return fiber(table, text_n, times)
    if isinstance(table, METERModel):
        return meter(table, text_n, times)
    if isinstance(table, PixelBERTModel):
        return pixelbert(table, text_n, times)
    return semvlp(table, text_n, times)


def text_heads(recipe: Recipe, text_n: float) -> Cost:
    """Returns the cost of the heads of ITC, ITM, and MLM at the masked positions alone."""
    table, objectives, cost = recipe.model, recipe.objectives, Cost()
    d, vocabulary, alone = table.text.width, table.text.vocabulary, runs(recipe)
    if objectives.itc is not None:
        width, cells = d, 0
        if isinstance(table, Towers):
            width, cells = table.image.final_width, final_grid(table)
        image, text = pooler(width, d, cells), pooler(d, d, 1)
        keys = (recipe.batch.contrastive_pairs or recipe.batch.micro_pairs or 0) + objectives.itc.queue
        cost += image.run(alone.unimodal_images) + text.run(alone.unimodal_texts)
        cost += Cost(1, 2 * 2.0 * d * keys)  # the temperature; both directions' similarities
    if objectives.itm is not None:
        streams = 2 if isinstance(table, Towers) else 1
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


def object_heads(recipe: Recipe, facts: DataFacts | None) -> Cost:
    """Returns the cost of the heads of MOP, at the objects that it predicts alone, and of QA."""
    table, objectives, cost = recipe.model, recipe.objectives, Cost()
    d = table.text.width
    if objectives.mop is not None and isinstance(table, SemVLPModel):
        mop = objectives.mop
        rows = table.objects * (1.0 if mop.predicted == "all" else mop.probability)
        cost += linear(d, d, rows) + norm(d)
        cost += linear(d, table.feature_width, rows) + linear(d, mop.classes, rows)
    if objectives.qa is not None:
        known = facts.answers if facts else None
        answers = len(known.ids) if known else LXMERT_ANSWERS
        cost += linear(d, 2 * d, 1) + norm(2 * d) + linear(2 * d, answers, 1)
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
