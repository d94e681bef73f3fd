"""Published weights into our towers: every key is used, or left out by name; nothing is silent.

timm's checkpoints and transformers' folders load by those libraries' own functions. What is left
unused on purpose is named per tower below; any other missing or unused key is an error.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import timm
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple
from timm.models import load_state_dict
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PretrainedConfig, RobertaConfig, RobertaModel

from dsvlp.errors import RecipeError
from dsvlp.layers.positions import resample

log = logging.getLogger(__name__)

CNN_UNUSED = (r"fc\.", r"head\.fc\.", r"classifier\.")
SWIN_UNUSED = (r"head\.", r".*\.attn_mask$", r".*\.relative_position_index$")
VIT_UNUSED = (r"head\.", r"cls_token$", r"pre_logits\.")
BERT_UNUSED = (r"(bert\.)?pooler\.", r"cls\.", r"(bert\.)?embeddings\.position_ids$")
ROBERTA_UNUSED = (r"(roberta\.)?pooler\.", r"lm_head\.", r"(roberta\.)?embeddings\.position_ids$")
BERT_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "hidden_act",
)
ROBERTA_SIZES = (*BERT_SIZES, "type_vocab_size", "pad_token_id", "layer_norm_eps")
TABLE = "relative_position_bias_table"  # [offsets of the window, heads]
GRIDS = ("pos_embed", "positions.table")  # [1, cells, width]

B = TypeVar("B", bound=BertModel)
R = TypeVar("R", bound=RobertaModel)


def load_vit(tower: VisionTransformer, weights: str) -> None:
    """Fills a ViT tower from a timm checkpoint (name or file); positions are interpolated to its grid.

    Left out: the classifier, [CLS] with its position, and the blocks beyond the tower's own.

    Raises:
        RecipeError: the checkpoint cannot be read, or its keys or shapes do not fit.
    """
    state = published(weights)
    if "pos_embed" in state:
        state["pos_embed"] = _grid_positions(state, tower)
    fill(tower, state, weights, (*VIT_UNUSED, *_beyond("blocks", len(tower.blocks), state)))


def load_cnn(trunk: nn.Module, weights: str) -> None:
    """Fills a CNN trunk from a timm checkpoint (name or file), all but its classifier.

    Raises:
        RecipeError: the checkpoint cannot be read, or its keys or shapes do not fit.
    """
    fill(trunk, published(weights), weights, CNN_UNUSED)


def load_swin(tower: SwinTransformer, weights: str) -> None:
    """Fills a Swin tower from a timm checkpoint (name or file), all but its classifier.

    Tables of relative positions are resized to the tower's windows. Files in the form of Swin's own
    code, with the merging at the end of a stage, are read too.

    Raises:
        RecipeError: the checkpoint cannot be read, or its keys or shapes do not fit.
    """
    state = published(weights)
    if "layers.0.downsample.reduction.weight" in state:
        state = {re.sub(r"^layers\.(\d+)\.downsample", _next_stage, key): state[key] for key in state}
    fill(tower, resize_tables(state, tower.state_dict()), weights, SWIN_UNUSED)


def resize_tables(state: dict[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state whose tables over the image have the sizes that they have in `like`.

    Bicubic: tables of relative positions over the offsets of the window, (2 w - 1)^2 for windows of w, as
    FIBER's code (FIBER, 1.1); tables of a grid's positions over its cells. Other entries, and tables of other
    heads or widths, are left as they are.
    """
    out = dict(state)
    for name, table in state.items():
        if name not in like or like[name].shape == table.shape:
            continue
        if name.endswith(TABLE) and like[name].shape[1:] == table.shape[1:]:
            window = (_side(len(like[name])) + 1) // 2
            out[name] = resize_rel_pos_bias_table_simple(table, (window, window), like[name].shape)
        elif name.endswith(GRIDS) and like[name].shape[2:] == table.shape[2:]:
            old, new = _side(table.shape[1]), _side(like[name].shape[1])
            out[name] = resample(table, (old, old), (new, new))
    return out


def load_roberta(tower: type[R], config: RobertaConfig, weights: str) -> R:
    """Returns a RoBERTa tower of the recipe's sizes from a published one (hub name or folder).

    Left out: the pooler, the language-model head, and the layers beyond the tower's own.

    Raises:
        RecipeError: the weights cannot be read, or their sizes or keys do not fit.
    """
    return _load_text(tower, config, weights, "roberta", ROBERTA_UNUSED, ROBERTA_SIZES)


def load_bert(tower: type[B], config: BertConfig, weights: str) -> B:
    """Returns a BERT tower of the recipe's sizes from a published one (hub name or folder).

    Left out: the pooler, the pre-training heads, and the layers beyond the tower's own.

    Raises:
        RecipeError: the weights cannot be read, or their sizes or keys do not fit.
    """
    return _load_text(tower, config, weights, "bert", BERT_UNUSED, BERT_SIZES)


def published(weights: str) -> dict[str, Tensor]:
    """Returns the state of a timm checkpoint: a file of a state dict, or a name that timm downloads."""
    try:
        if Path(weights).is_file():
            return dict(load_state_dict(weights, use_ema=False, weights_only=True))
        if not timm.is_model(weights.partition(".")[0]):
            raise RecipeError(
                f"model.image.weights = {weights!r} is neither a file nor a model that timm knows",
                "e.g. vit_base_patch32_384, resnet50.a1_in1k, or the path of a .safetensors file",
            )
        return dict(timm.create_model(weights, pretrained=True).state_dict())
    except (OSError, RuntimeError) as error:
        raise _unreadable("model.image.weights", weights, error) from error


def fill(module: nn.Module, state: dict[str, Tensor], weights: str, unused: tuple[str, ...]) -> None:
    """Copies a state into a module; keys that match a pattern of `unused` are left out.

    Raises:
        RecipeError: names the missing and unused keys, or the shapes that differ.
    """
    own = module.state_dict()
    left = sorted(k for k in state if k not in own and _matches(k, unused))
    _complete(weights, sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys() - set(left)))
    wrong = [
        f"{k}: {tuple(state[k].shape)}, ours {tuple(own[k].shape)}"
        for k in own
        if state[k].shape != own[k].shape
    ]
    if wrong:
        raise RecipeError(
            f"weights {weights!r} have other shapes than the recipe's model: {_some(wrong)}",
            "sizes as the published model's",
        )
    module.load_state_dict({k: state[k] for k in own})
    log.info("%s: %d tensors of %s, left out on purpose: %s", type(module).__name__, len(own), weights, left)


def _load_text(
    tower: Any,
    config: PretrainedConfig,
    weights: str,
    prefix: str,
    left: tuple[str, ...],
    sizes: tuple[str, ...],
) -> Any:
    """Returns a text tower from its published weights.

    Args:
        prefix: what the published names may start with.
        left: patterns of keys that are left out.
        sizes: keys of the configuration that must agree.
    """
    try:
        theirs = type(config).from_pretrained(weights)
        _same_sizes(theirs, config, sizes, weights)
        model, report = tower.from_pretrained(weights, config=config, output_loading_info=True)
    except OSError as error:
        raise _unreadable("model.text.weights", weights, error) from error
    layers = range(config.num_hidden_layers, theirs.num_hidden_layers)
    unused = (*left, *(rf"({prefix}\.)?encoder\.layer\.{n}\." for n in layers))
    strange = sorted(k for k in report["unexpected_keys"] if not _matches(k, unused))
    _complete(weights, sorted(report["missing_keys"]), strange)
    log.info("text tower: %d of %d layers of %s", config.num_hidden_layers, theirs.num_hidden_layers, weights)
    model.train()
    return model


def _next_stage(match: re.Match[str]) -> str:
    return f"layers.{int(match[1]) + 1}.downsample"


def _grid_positions(state: dict[str, Tensor], tower: VisionTransformer) -> Tensor:
    table = state["pos_embed"]
    if "cls_token" in state:
        table = table[:, 1:]
    side = _side(table.shape[1])
    return resample(table, (side, side), tower.patch_embed.grid_size)


def _side(cells: int) -> int:
    """Returns the side of a square of this many cells."""
    return round(cells**0.5)


def _beyond(name: str, kept: int, state: dict[str, Tensor]) -> tuple[str, ...]:
    numbers = {int(m[1]) for key in state if (m := re.match(rf"{name}\.(\d+)\.", key))}
    return tuple(rf"{name}\.{n}\." for n in numbers if n >= kept)


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(re.match(pattern, key) for pattern in patterns)


def _complete(weights: str, missing: list[str], strange: list[str]) -> None:
    problems = [f"lack {_some(missing)}"] if missing else []
    problems += [f"hold {_some(strange)}, which nothing uses"] if strange else []
    if problems:
        raise RecipeError(
            f"weights {weights!r} " + " and ".join(problems),
            "a checkpoint of the same kind of model as the recipe's",
        )


def _same_sizes(
    theirs: PretrainedConfig, ours: PretrainedConfig, sizes: tuple[str, ...], weights: str
) -> None:
    wrong = [
        f"{key} {getattr(theirs, key)!r}, the recipe's {getattr(ours, key)!r}"
        for key in sizes
        if getattr(theirs, key) != getattr(ours, key)
    ]
    if theirs.num_hidden_layers < ours.num_hidden_layers:
        wrong.append(f"{theirs.num_hidden_layers} layers, the recipe's {ours.num_hidden_layers}")
    if wrong:
        raise RecipeError(
            f"weights {weights!r} have {'; '.join(wrong)}",
            "the same sizes in [model.text]",
        )


def _some(names: list[str], shown: int = 8) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def _unreadable(key: str, weights: str, error: Exception) -> RecipeError:
    return RecipeError(
        f"{key} = {weights!r} cannot be loaded: {error}",
        "published weights that this machine has or can download",
        "Download them where there is a network, or give the path of a local copy",
    )
