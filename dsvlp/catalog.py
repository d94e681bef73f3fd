"""The table of systems and objectives: module path, what each provides and needs. Torch-free.

A recipe is checked against this table on the login node, before anything is built. An entry names
its class by path, so that a new system or objective is one line here and one file there; nothing
registers itself. Parameter and FLOP formulas stand in `dsvlp.accounting.flops`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsvlp.recipe import Recipe


@dataclass(frozen=True)
class Entry:
    """One model or objective.

    Attributes:
        path: "module:Class".
        summary: one line for people.
        provides: what it offers ("unimodal", "fused", "grid", "queries").
        needs: what it must find among the model's and the other objectives' offers.
        data: annotations that every training source must have ("segmentation", "boxes").
    """

    path: str
    summary: str
    provides: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    data: frozenset[str] = frozenset()

    def load(self) -> Any:
        """Returns the class; this is where torch gets imported."""
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)


SYSTEMS = {
    "svl": Entry(
        "dsvlp.models.svl:SVL",
        "two streams, ViT or ResNet and BERT, cross-modality layers on top",
        provides=frozenset({"unimodal", "fused", "grid"}),
    ),
    "fiber": Entry(
        "dsvlp.models.fiber:FIBER",
        "Swin and RoBERTa with gated cross-attention inside",
        provides=frozenset({"unimodal", "fused", "causal"}),
    ),
    "meter": Entry(
        "dsvlp.models.meter:METER",
        "Swin and RoBERTa with co-attention layers on top: FIBER's rival",
        provides=frozenset({"unimodal", "fused"}),
    ),
    "pixelbert": Entry(
        "dsvlp.models.pixelbert:PixelBERT",
        "a CNN's pixels and words in one BERT",
        provides=frozenset({"fused"}),
    ),
    "semvlp": Entry(
        "dsvlp.models.semvlp:SemVLP",
        "detected objects and words in one BERT, as one stream or as two",
        provides=frozenset({"fused", "objects"}),
    ),
}

CNN_COUNT = Entry("dsvlp.models.counted:count", "the work of a CNN that no formula knows")

OBJECTIVES = {
    "itc": Entry(
        "dsvlp.objectives.itc:ITC",
        "image-text contrast",
        provides=frozenset({"similarity"}),
        needs=frozenset({"unimodal"}),
    ),
    "itm": Entry("dsvlp.objectives.itm:ITM", "image-text matching", needs=frozenset({"fused"})),
    "mlm": Entry("dsvlp.objectives.mlm:MLM", "masked language modelling", needs=frozenset({"fused"})),
    "ssul": Entry("dsvlp.objectives.ssul:SSUL", "mean colour of masked cells", needs=frozenset({"grid"})),
    "segl": Entry(
        "dsvlp.objectives.segl:SEGL",
        "segmentation of the visual grid",
        needs=frozenset({"grid"}),
        data=frozenset({"segmentation"}),
    ),
    "spl": Entry(
        "dsvlp.objectives.spl:SPL",
        "pseudo-labels by Hungarian matching",
        needs=frozenset({"queries"}),
        data=frozenset({"boxes"}),
    ),
    "mop": Entry(
        "dsvlp.objectives.mop:MOP",
        "masked object prediction",
        needs=frozenset({"fused", "objects"}),
        data=frozenset({"objects"}),
    ),
    "qa": Entry(
        "dsvlp.objectives.qa:QA",
        "answers to questions",
        needs=frozenset({"fused"}),
        data=frozenset({"answers"}),
    ),
}


def provided(recipe: Recipe) -> frozenset[str]:
    """Returns everything that the recipe's model and objectives offer."""
    model = recipe.model
    out = SYSTEMS[model.system].provides
    if model.visual_queries:
        out |= {"queries"}
    for name in recipe.objectives.enabled():
        out |= OBJECTIVES[name].provides
    return out


def data_needs(recipe: Recipe) -> frozenset[str]:
    """Returns the annotations that the recipe's objectives read."""
    return frozenset().union(*(OBJECTIVES[name].data for name in recipe.objectives.enabled()))


def problems(recipe: Recipe) -> list[str]:
    """Returns one sentence for each contradiction that can be seen without data; empty when there is none."""
    out = []
    enabled = recipe.objectives.enabled()
    if not enabled:
        out.append(f"no objective is enabled; add one of [objectives.{'], [objectives.'.join(OBJECTIVES)}]")
    offers = provided(recipe)
    for name in enabled:
        for need in sorted(OBJECTIVES[name].needs - offers):
            out.append(f"objectives.{name} needs {need!r}; {_remedy(need)}")
    itm = recipe.objectives.itm
    if itm is not None and itm.negatives != "loader" and "similarity" not in offers:
        out.append(
            f"objectives.itm.negatives = {itm.negatives!r} needs 'similarity'; add [objectives.itc] or set "
            f"'loader'"
        )
    if recipe.model.visual_queries and recipe.objectives.spl is None:
        out.append(
            "model.visual_queries replace the grid but nothing trains them; add [objectives.spl] or set 0"
        )
    for name in ("ssul", "segl"):
        table = getattr(recipe.objectives, name)
        if table is not None and table.at == "post" and recipe.model.visual_queries:
            out.append(
                f"objectives.{name}.at = 'post', but model.visual_queries replace the grid before fusion"
            )
    if recipe.start is not None and recipe.model.pretrained:
        out.append(
            f"start = {recipe.start!r} has the towers' weights and model.pretrained = true fetches others; "
            f"set model.pretrained = false"
        )
    out += _batch_problems(recipe) + _feature_problems(recipe)
    model, ssul = recipe.model, recipe.objectives.ssul
    if model.system != "svl" or ssul is None:  # no other system has the grid
        return out
    if model.image_size % ssul.cell:
        out.append(f"objectives.ssul.cell {ssul.cell} does not divide model.image_size {model.image_size}")
    if ssul.cell % model.stride:
        out.append(
            f"objectives.ssul.cell {ssul.cell} is not a multiple of the image tower's stride {model.stride}"
        )
    return out


def notes(recipe: Recipe) -> list[str]:
    """Returns what a recipe's reader should know though nothing is wrong with it: one sentence each."""
    return [*_captions_note(recipe), *_pixels_note(recipe)]


def _captions_note(recipe: Recipe) -> list[str]:
    """Pairs that share an image change what a batch is made of."""
    pairs, captions = recipe.batch.global_pairs, recipe.data.captions_per_image
    if captions == 1:
        return []
    images = pairs // captions
    return [f"data.captions_per_image = {captions}: the {pairs:,} pairs of a step have {images:,} images"]


def _pixels_note(recipe: Recipe) -> list[str]:
    model = recipe.model
    if model.system != "pixelbert" or model.pixels <= model.cells:
        return []
    if model.pixels <= model.most_cells:
        return [
            f"model.pixels = {model.pixels}, but a square image has {model.cells} cells at model.image_size "
            f"{model.image_size}: those near it keep all of theirs"
        ]
    return [
        f"model.pixels = {model.pixels}, but no image has more than {model.most_cells} cells at "
        f"model.image_size {model.image_size}: each keeps all of its own"
    ]


def _batch_problems(recipe: Recipe) -> list[str]:
    batch, captions, out = recipe.batch, recipe.data.captions_per_image, []
    key = "micro_pairs" if batch.contrastive_pairs is None else "contrastive_pairs"
    size = batch.micro_pairs or batch.contrastive_pairs or 0
    if batch.global_pairs % size:
        out.append(f"batch.global_pairs {batch.global_pairs} is not a multiple of batch.{key} {size}")
    if size % captions:
        out.append(f"batch.{key} {size} is not a multiple of data.captions_per_image {captions}")
    schedule = getattr(recipe.model, "mode_schedule", "single")
    if schedule not in ("single", "two") and batch.micro_pairs is None:
        out.append("batch.contrastive_pairs is about objectives.itc; set batch.micro_pairs in its place")
    if schedule not in ("single", "two") and size % 2:
        out.append(
            f"model.mode_schedule = {schedule!r} reads every second pair of a micro-batch in one stream, in "
            f"training or in validation; batch.{key} {size} must be even"
        )
    itc, itm = recipe.objectives.itc, recipe.objectives.itm
    if itc is not None and size < 2 * captions and not itc.queue:
        out.append(f"objectives.itc contrasts a batch of one image with nothing; raise batch.{key} {size}")
    if itc is not None:
        out += [
            f"objectives.itc contrasts true pairs, but objectives.{name} changes its view {itc.view!r}; give "
            f"objectives.itc.view another name, e.g. 'clean'"
            for name in _editors(recipe, itc.view)
        ]
    if itm is None:
        return out
    if itm.negatives == "loader" and batch.global_pairs < 2 * captions:
        out.append("objectives.itm needs at least two images in a global batch; raise batch.global_pairs")
    if itm.of_own_batch and size < 2 * captions:
        out.append(
            f"objectives.itm.negatives = {itm.negatives!r} needs two images in a micro-batch; raise "
            f"batch.{key} {size}"
        )
    if itm.same_image == "negative" and itc is not None and itc.same_image == "masked":
        out.append(
            "objectives.itm.same_image = 'negative', but objectives.itc.same_image = 'masked' leaves these "
            "pairs out of the similarities; set both alike"
        )
    if itm.negatives == "queue" and itm.negatives_delay == 0 and recipe.engine.cut_texts:
        out.append(
            "engine.cut_texts needs every text's length before the step, but objectives.itm.negatives_delay "
            "= 0 brings texts within it; set engine.cut_texts=false, or negatives_delay=1"
        )
    if itm.negatives == "gathered" and batch.contrastive_pairs is None:
        out.append(
            "objectives.itm.negatives = 'gathered' needs batch.contrastive_pairs in place of "
            "batch.micro_pairs"
        )
    if itm.negatives == "queue" and (itc is None or not itc.queue):
        out.append("objectives.itm.negatives = 'queue' needs a queue; set objectives.itc.queue, e.g. to 4096")
    return out


def _feature_problems(recipe: Recipe) -> list[str]:
    """Returns what is missing where a model reads region features of data that the recipe names."""
    if "objects" not in SYSTEMS[recipe.model.system].provides:
        return []
    data, system = recipe.data, recipe.model.system
    named = [(f"data.train[{n}].features", each.path, each.features) for n, each in enumerate(data.train)]
    if data.validation is not None:
        named.append(("data.validation_features", data.validation, data.validation_features))
    return [
        f"{key} is not set, and {system} reads region features in place of pictures; make them with "
        f"`dsvlp data features {path}`"
        for key, path, features in named
        if features is None
    ]


def _editors(recipe: Recipe, view: str) -> list[str]:
    """Returns the objectives that change images or texts of a view."""
    tables = recipe.objectives
    itm = tables.itm if tables.itm is not None and tables.itm.negatives == "loader" else None
    editors = {"itm": itm, "mlm": tables.mlm, "ssul": tables.ssul}
    return [name for name, table in editors.items() if table is not None and table.view == view]


def _remedy(need: str) -> str:
    if need == "queries":
        return "set model.visual_queries to 36 or 100"
    owners = [name for name, entry in {**SYSTEMS, **OBJECTIVES}.items() if need in entry.provides]
    return f"it comes from {' or '.join(owners)}" if owners else "nothing in this recipe provides it"
