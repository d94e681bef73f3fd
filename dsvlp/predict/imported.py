"""Published FIBER checkpoints as systems of ours, and back: for `dsvlp import` and `dsvlp export`.

Only the coarse, pre-trained kind is read. What does not belong to it is refused by name before a
system is built, and nothing is written before every tensor has found its place.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from torch import Tensor

from dsvlp import recipe as recipes
from dsvlp import system as systems
from dsvlp.data.text import Tokenizer
from dsvlp.engine.inference import Trained, load_weights, named_tensors
from dsvlp.engine.start import BETWEEN_STEPS
from dsvlp.errors import CheckpointError, RunError
from dsvlp.models import fiber_names
from dsvlp.models.pretrained import resize_tables
from dsvlp.predict import official
from dsvlp.predict.export import stored
from dsvlp.recipe import FIBERModel, Recipe
from dsvlp.system import System
from dsvlp.types import DataFacts

log = logging.getLogger(__name__)

FINE = re.compile(r"(module\.)?(backbone|language_backbone|rpn)\.")  # GLIP's names (FIBER, 3)
LAST_TABLE = re.compile(r"vit_model\.layers\.\d+\.blocks\.0\.attn\.relative_position_bias_table")


def read(path: Path, name: str, overrides: tuple[str, ...] | list[str], tokenizer: Tokenizer) -> Trained:
    """Returns the system of an official coarse checkpoint.

    Window tables are resized where the recipe's `model.image_size` is given in `overrides` and another
    than the checkpoint's; `model.captioning` follows the checkpoint where it is not given.

    Args:
        path: a `.ckpt` or `.safetensors` file.
        name: the recipe that says the sizes, heads and fusion plan.
        overrides: its `key=value`.
        tokenizer: the one that the checkpoint was trained with.

    Raises:
        CheckpointError: another variant, or entries that are missing, unexpected or of another shape.
        RecipeError: a recipe that is not FIBER's, or a tokenizer that does not fit.
    """
    state = official.read(path)
    _check_variant(state, path)
    recipe = _with_captioning(recipes.load(name, overrides), state)
    model = fiber_table(recipe)
    _check_size(state, model, path, asked=any(text.startswith("model.image_size") for text in overrides))
    facts = _facts(tokenizer)
    system = systems.build(recipe, facts)
    own = named_tensors(system)
    ours = fiber_names.to_ours(state, model.fusion.plan, len(model.image.depths))
    _check_names(own, ours, model, path)
    buffers = {name: own[name] for name, _ in system.named_buffers() if name in own}
    load_weights(system, buffers | resize_tables(ours, own), str(path))
    _report(state, model)
    return Trained(recipe, facts, system, 0, path)


def write(system: System, recipe: Recipe, path: Path) -> int:
    """Writes a system under the official names and returns how many tensors the file has.

    Raises:
        RunError: the system is not FIBER, has a head that the official code lacks, or cannot be written.
    """
    model = fiber_table(recipe)
    state = fiber_names.to_official(stored(system), model.fusion.plan, len(model.image.depths))
    official.write({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return len(state)


def fiber_table(recipe: Recipe) -> FIBERModel:
    """Returns the model's table of a FIBER recipe; raises `RunError` for another system's."""
    if not isinstance(recipe.model, FIBERModel):
        raise RunError(
            f"model.system = {recipe.model.system!r} has no official FIBER form",
            "a system with model.system = 'fiber'",
            "Choose a recipe of FIBER's, or export in dsvlp's own format",
        )
    return recipe.model


def _with_captioning(recipe: Recipe, state: dict[str, Tensor]) -> Recipe:
    """Returns the recipe without downloads, and with captioning where the checkpoint has its parts."""
    captioning = any(key.startswith("cross_modal_att_layers.") for key in state)
    model = fiber_table(recipe)
    changes = {"captioning": captioning or model.captioning, "pretrained": False}
    return recipe.model_copy(update={"model": model.model_copy(update=changes)})


def _check_variant(state: dict[str, Tensor], path: Path) -> None:
    """Raises `CheckpointError` for what is not the official coarse FIBER."""
    fine = next((key for key in state if FINE.match(key)), None)
    if fine is not None:
        raise CheckpointError(
            f"{path} is a fine-grained FIBER, a detector: it holds {fine!r}",
            "a coarse checkpoint (fiber_pretrain.ckpt), with names like 'vit_model.layers.0...'",
            "Take the coarse one; dsvlp has no detection yet",
        )
    if not any(key.startswith("vit_model.") for key in state):
        raise CheckpointError(
            f"{path} is no FIBER: it holds {', '.join(sorted(state)[:3]) or 'nothing'}",
            "names like 'vit_model.layers.0...' and 'text_transformer...'",
            "Check the path",
        )


def _check_size(state: dict[str, Tensor], model: FIBERModel, path: Path, *, asked: bool) -> None:
    """Raises `CheckpointError` where the windows are of another image size, and none was asked for."""
    tables = [len(tensor) for key, tensor in sorted(state.items()) if LAST_TABLE.fullmatch(key)]
    if not tables or asked:
        return
    size = (round(tables[-1] ** 0.5) + 1) // 2 * model.stride
    if size != model.image_size:
        raise CheckpointError(
            f"{path} has windows for {size} pixels, the recipe's model.image_size is {model.image_size}",
            "the size to go on with",
            f"Add --image-size {size} to keep it, or --image-size {model.image_size} to resize its tables",
        )


def _check_names(own: dict[str, Tensor], ours: dict[str, Tensor], model: FIBERModel, path: Path) -> None:
    """Raises `CheckpointError` that names what the checkpoint lacks and what it has too much."""
    # Official files hold what objectives remember between steps in another form or not at all.
    expected = {name: own[name] for name in own if not name.startswith(BETWEEN_STEPS)}
    missing = {name: expected[name] for name in expected.keys() - ours.keys()}
    extra = {name: ours[name] for name in ours.keys() - expected.keys()}
    if missing or extra:
        problems = [f"lacks {_named(missing, model)}"] if missing else []
        problems += [f"holds {_named(extra, model)}, which the recipe does not have"] if extra else []
        raise CheckpointError(
            f"{path} {' and '.join(problems)}",
            "exactly the recipe's model and objectives",
            "Choose them by key=value, e.g. objectives.itc=false or model.fusion.image_query_norm=false",
        )


def _facts(tokenizer: Tokenizer) -> DataFacts:
    return DataFacts(
        tokenizer.vocabulary, tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id
    )


def _report(state: dict[str, Tensor], model: FIBERModel) -> None:
    """Logs what of the checkpoint no pass uses, by reason; warns of the re-ranking head."""
    reasons: dict[str, int] = {}
    for name in state:
        reason = fiber_names.why_dead(name, model.fusion.plan, len(model.image.depths))
        if reason is not None:
            reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in sorted(reasons.items()):
        log.info("left out: %d entries, %s", count, reason)
    if "rank_output.weight" in state:
        log.warning(
            "rank_output is a stale copy and is not used (FIBER, 4.9): "
            "matching reads the ITM head, row 1 minus row 0"
        )


def _named(ours: dict[str, Tensor], model: FIBERModel, shown: int = 6) -> str:
    """Returns the official names of some of our tensors."""
    names = sorted(fiber_names.to_official(ours, model.fusion.plan, len(model.image.depths)))
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
