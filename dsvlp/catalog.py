"""The table of systems and objectives: module path, what each provides and needs. Torch-free.

A recipe is checked against this table on the login node, before anything is built. An entry names
its class by path, so that a new system or objective is one line here and one file there; nothing
registers itself. Parameter and FLOP formulas stand in `dsvlp.accounting.flops`.

The other systems' lines, when they come: `pixelbert`, `semvlp` (fused).
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
}

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
    out += _batch_problems(recipe)
    ssul = recipe.objectives.ssul
    if ssul is not None and recipe.model.image_size % ssul.cell:
        out.append(
            f"objectives.ssul.cell {ssul.cell} does not divide model.image_size {recipe.model.image_size}"
        )
    if ssul is not None and ssul.cell % recipe.model.stride:
        out.append(
            f"objectives.ssul.cell {ssul.cell} is not a multiple of the image tower's stride "
            f"{recipe.model.stride}"
        )
    return out


def _batch_problems(recipe: Recipe) -> list[str]:
    batch, captions, out = recipe.batch, recipe.data.captions_per_image, []
    key = "micro_pairs" if batch.contrastive_pairs is None else "contrastive_pairs"
    size = batch.micro_pairs or batch.contrastive_pairs or 0
    if batch.global_pairs % size:
        out.append(f"batch.global_pairs {batch.global_pairs} is not a multiple of batch.{key} {size}")
    if size % captions:
        out.append(f"batch.{key} {size} is not a multiple of data.captions_per_image {captions}")
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
    if itm.negatives in ("gathered", "queue") and recipe.engine.cut_texts:
        out.append(
            f"engine.cut_texts gives each micro-batch a length of its own, objectives.itm.negatives = "
            f"{itm.negatives!r} joins texts of several; set engine.cut_texts=false"
        )
    if itm.negatives == "gathered" and batch.contrastive_pairs is None:
        out.append(
            "objectives.itm.negatives = 'gathered' needs batch.contrastive_pairs in place of "
            "batch.micro_pairs"
        )
    if itm.negatives == "queue" and (itc is None or not itc.queue):
        out.append("objectives.itm.negatives = 'queue' needs a queue; set objectives.itc.queue, e.g. to 4096")
    return out


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
