"""How often a step runs each part of a model for one pair: `dsvlp.passes`, counted without torch.

Legend: P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsvlp.recipe import Recipe

DRAWN = 2  # hard negatives of a pair: an image for its text, a text for its image (FIBER, 2)


@dataclass(frozen=True)
class Runs:
    """Forwards of each part of the model for a pair; an image that P pairs share counts 1 / P.

    Attributes:
        images: of the image tower below the fusion.
        texts: of the text tower below the fusion.
        unimodal_images: of the image tower's rest, untouched by any text.
        unimodal_texts: of the text tower's rest, untouched by any image.
        fused: of the fusion.
    """

    images: float
    texts: float
    unimodal_images: float
    unimodal_texts: float
    fused: float


def hard_negatives(recipe: Recipe) -> int:
    """Returns the pairs that image-text matching adds to each pair."""
    itm = recipe.objectives.itm
    return DRAWN if itm is not None and itm.negatives != "loader" else 0


def runs(recipe: Recipe) -> Runs:
    """Returns what a training step of the recipe runs for each of its pairs.

    With shared prefixes each different image and text is encoded once, and a queue's pair, which was
    fetched for ITM, once more. Without, each pass encodes its own.
    """
    views, itm, captions = _views(recipe), recipe.objectives.itm, recipe.data.captions_per_image
    own = {view for name, view in views.items() if name != "itc"}
    alone, drawn = int("itc" in views), hard_negatives(recipe)
    swapped = itm is not None and itm.negatives == "loader"
    edited = {view for name, view in views.items() if name == "mlm" or (swapped and name == "itm")}
    # Where the loader brings each pair a second text, views that nobody edits hold both.
    untouched = 2 if swapped else 1
    if recipe.engine.share_prefixes:
        fetched = int(itm is not None and itm.negatives == "queue")
        images = _different(views, {views.get(name) for name in ("ssul", "mop")}) / captions + fetched
        texts = len(edited) + untouched * any(view not in edited for view in views.values()) + fetched
    else:
        images = (len(own) + alone) / captions + drawn
        texts = sum(1 if view in edited else untouched for view in own) + untouched * alone + drawn
    return Runs(images, texts, alone / captions, untouched * alone, len(own) + drawn)


def _views(recipe: Recipe) -> dict[str, str]:
    """Returns objective -> the view that it reads."""
    return {name: str(dict(table)["view"]) for name, table in recipe.objectives.enabled().items()}


def _different(views: dict[str, str], edited: set[str | None]) -> int:
    """Returns how many different images the views hold of one, where the edited ones have their own."""
    read = set(views.values())
    return len(read & edited) + bool(read - edited)
