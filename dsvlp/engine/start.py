"""A training's first weights from an exported or imported folder: the recipe's `start`.

The model's weights are taken all, or the start is refused. An objective's are taken whole, or not at
all: what is left out is logged by name. What objectives remember between steps (ITC's queue, ITM's
pool) is never taken.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dsvlp import catalog, dist
from dsvlp.data.text import Tokenizer
from dsvlp.engine.exported import TOKENIZER, Exported, damaged
from dsvlp.engine.inference import load_weights, named_tensors
from dsvlp.errors import RecipeError
from dsvlp.files import read_json, write_json
from dsvlp.models.pretrained import resize_tables
from dsvlp.models.semvlp import SemVLP
from dsvlp.recipe import Recipe
from dsvlp.system import System
from dsvlp.types import DataFacts

log = logging.getLogger(__name__)

BETWEEN_STEPS = ("objectives.itc.queue.", "objectives.itm.pool.")
"""What objectives remember between steps: true of one run alone."""

Weights = Mapping[str, Tensor]


def read_weights(exported: Exported) -> dict[str, Tensor]:
    """Returns an export's tensors by name.

    Raises:
        CheckpointError: the file is absent or damaged.
    """
    exported.verify()
    try:
        return load_file(exported.weights)
    except (OSError, SafetensorError) as error:
        raise damaged(exported.folder, error) from error


def begin(system: System, exported: Exported, facts: DataFacts, tokenizer: Tokenizer) -> None:
    """Copies an export's weights into a new system; tables over the image get the system's sizes.

    Args:
        system: as it was built, on the CPU, of the sizes that `exported.start_of` has checked.
        exported: the start.
        facts, tokenizer: of the data that training reads.

    Raises:
        RecipeError: the tokenizer is not the start's.
        CheckpointError: the file is damaged, or the model's tensors are not the system's.
    """
    if tokenizer.fingerprint != exported.tokenizer:
        raise RecipeError(
            f"the tokenizer {tokenizer.source} is not the one that {exported.folder} was trained with",
            "the same vocabulary: the rows of the word table are its words",
            f"Set data.tokenizer={exported.folder / TOKENIZER}",
        )
    own = dict(named_tensors(system))
    theirs = resize_tables(read_weights(exported), own)
    taken = {name: tensor for name, tensor in theirs.items() if name.startswith("model.")}
    left = {}
    here, there = _by_objective(own), _by_objective(theirs)
    for name in sorted(here.keys() | there.keys()):
        reason = _why_not(name, here, there, exported.facts, facts)
        if reason is None:
            taken |= there[name]
        else:
            left[name] = reason
    kept = {name: tensor for name, tensor in own.items() if not name.startswith("model.")}
    load_weights(system, kept | taken, str(exported.folder))
    if isinstance(system.model, SemVLP) and _never_crossed(exported.recipe):
        system.model.start_cross()
        log.info("start: cross-attention, which was never trained there, starts as self-attention")
    if dist.rank() == 0:
        common = ", ".join(name for name in there if name not in left) or "none"
        log.info("start: step %d of %s; objectives taken: %s", exported.step, exported.folder, common)
        for name, reason in left.items():
            log.warning("start: objectives.%s is not taken: %s", name, reason)


def record(exported: Exported, run: Path) -> None:
    """Writes into a run's manifest.json what the run started from.

    Raises:
        RunError: the disk refuses.
    """
    path = run / "manifest.json"
    told = {"folder": str(exported.folder), "step": exported.step, "sha256": exported.sha256}
    write_json(path, read_json(path, "`dsvlp train --run`") | {"start": told})


def _never_crossed(recipe: Recipe) -> bool:
    """Returns whether cross-attention stands in a SemVLP run's export as it was made, but for its decay."""
    return getattr(recipe.model, "mode_schedule", None) == "single" and recipe.start is None


def _by_objective(weights: Weights) -> dict[str, dict[str, Tensor]]:
    """Returns objective -> its weights by name."""
    out: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if name.startswith("objectives.") and not name.startswith(BETWEEN_STEPS):
            out.setdefault(name.split(".")[1], {})[name] = tensor
    return out


def _why_not(
    name: str, here: Mapping[str, Weights], there: Mapping[str, Weights], old: DataFacts, new: DataFacts
) -> str | None:
    """Returns why an objective's weights are not taken, None where they are."""
    if name not in here:
        return "the recipe has no such objective"
    if name not in there:
        return "the start has none, its weights are new"
    for annotation in sorted(catalog.OBJECTIVES[name].data):
        if getattr(old, annotation) != getattr(new, annotation):
            return f"the data's table of {annotation} is another than the start's, its weights are new"
    shapes = ({key: tuple(tensor.shape) for key, tensor in side[name].items()} for side in (here, there))
    differing = {key for key, _ in set.symmetric_difference(*(set(each.items()) for each in shapes))}
    if differing:
        return f"{', '.join(sorted(differing))} has another shape or no counterpart, its weights are new"
    return None
