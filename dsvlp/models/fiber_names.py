"""The official FIBER checkpoints' names and ours: pure functions on dicts of tensors.

The two differ by prefixes (a table of pairs, read in both directions) but for one place: the image
side's `qkv_text_i2t` holds keys and values in one Linear, keys first; ours are two (FIBER, 1.2). The
temperature is a scalar there and [1] here.
timm puts the patch merging at the start of the next stage, the official code at the end of the former.

Legend: D text width, C width of an image stage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from dsvlp.errors import CheckpointError

Plan = tuple[tuple[int, int, int], ...]  # (stage from 1, its block from 0, text layer from 0)

STAGES = 4  # of every published FIBER
QUEUES = ("image_queue", "text_queue", "image_input_queue", "text_input_queue", "text_input_mask_queue")
TEMPERATURE = ("temp", "objectives.itc.temperature")
HEADS = (
    ("cross_modal_image_transform.", "model.image_transform."),
    ("cross_modal_text_transform.", "model.text_transform."),
    ("cross_modal_image_pooler.", "model.image_pooler."),
    ("cross_modal_text_pooler.", "model.text_pooler."),
    ("cross_modal_image_transform_itc.", "objectives.itc.image_transform."),
    ("cross_modal_text_transform_itc.", "objectives.itc.text_transform."),
    ("cross_modal_image_pooler_itc.", "objectives.itc.image_pooler."),
    ("cross_modal_text_pooler_itc.", "objectives.itc.text_pooler."),
    TEMPERATURE,
    ("mlm_score.bias", "objectives.mlm.decoder.bias"),
    ("mlm_score.decoder.weight", "objectives.mlm.decoder.weight"),
    ("mlm_score.transform.dense.", "objectives.mlm.transform.0."),
    ("mlm_score.transform.LayerNorm.", "objectives.mlm.transform.2."),
    ("itm_score.fc.", "objectives.itm.head."),
    ("vqa_classifier.", "objectives.vqa.head."),
    ("nlvr2_classifier.", "objectives.nlvr2.head."),
)
IMAGE_PARTS = (
    ("norm_i2t_i.", "norm."),
    ("qkv_i2t.", "query."),
    ("proj_i2t.", "output."),
    ("alpha_i2t", "gate"),
)
TEXT_PARTS = (
    ("crossattention_t2i.self.", ""),
    ("crossattention_t2i.output.dense.", "output."),
    ("alpha_t2i", "gate"),
)


def to_ours(state: dict[str, Tensor], plan: Plan, stages: int = STAGES) -> dict[str, Tensor]:
    """Returns an official state under the system's names; what `why_dead` names is left out.

    Tables of relative positions keep their size: `pretrained.resize_tables` fits them to a model.

    Raises:
        CheckpointError: entries that no part of FIBER with this plan has.
    """
    pairs, joint = _prefixes(plan, stages), dict(_joint(plan))
    out: dict[str, Tensor] = {}
    strange = []
    for name, tensor in state.items():
        if why_dead(name, plan, stages) is not None:
            continue
        stem, _, kind = name.rpartition(".")
        if stem in joint:
            out[f"{joint[stem]}.key.{kind}"], out[f"{joint[stem]}.value.{kind}"] = tensor.chunk(2)
            continue
        renamed = _renamed(name, pairs)
        if renamed is None:
            strange.append(name)
        else:
            out[renamed] = tensor.reshape(1) if name == TEMPERATURE[0] else tensor
    if strange:
        raise CheckpointError(
            f"the checkpoint holds {', '.join(sorted(strange)[:8])}, which no part of FIBER is called",
            f"the official coarse names, with the fusion plan {[list(pair) for pair in plan]}",
        )
    return out


def to_official(state: dict[str, Tensor], plan: Plan, stages: int = STAGES) -> dict[str, Tensor]:
    """Returns a system's state under the official names; `to_ours` gives the same tensors back.

    Of the entries that `why_dead` names only `rank_output` is made, from the ITM head's row of matches,
    since the official re-ranking reads it (FIBER, 4.9). Our queue and pool have no official form and are
    left out.

    Raises:
        CheckpointError: entries that no official model has, or a key of a fusion without its value.
    """
    pairs = [(ours, official) for official, ours in _prefixes(plan, stages)]
    joint = {ours: official for official, ours in _joint(plan)}
    out: dict[str, Tensor] = {}
    strange = []
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        block, _, part = stem.rpartition(".")
        if block in joint and part in ("key", "value"):
            if part == "key":
                value = state.get(f"{block}.value.{kind}")
                strange += [name] if value is None else []
                out[f"{joint[block]}.{kind}"] = tensor if value is None else torch.cat((tensor, value))
            continue
        renamed = _renamed(name, pairs)
        if renamed is not None:
            out[renamed] = tensor.reshape(()) if name == TEMPERATURE[1] else tensor
        elif not name.startswith(("objectives.itc.", "objectives.itm.pool.")):
            strange.append(name)
    if strange:
        raise CheckpointError(
            f"the official FIBER has nothing for {', '.join(sorted(strange)[:8])}",
            f"a FIBER system with the fusion plan {[list(pair) for pair in plan]}",
        )
    for kind in ("weight", "bias"):
        if f"itm_score.fc.{kind}" in out:
            out[f"rank_output.{kind}"] = out[f"itm_score.fc.{kind}"][1:].clone()
    return out


def why_dead(name: str, plan: Plan, stages: int = STAGES) -> str | None:
    """Returns why an official entry is not used by any pass, or None where it is."""
    fused = {layer for _, _, layer in plan}
    projected = {layer for stage, _, layer in plan if stage < stages}
    if name in (*QUEUES, "queue_ptr", "queue_total"):
        return "queue of past inputs"
    if name.startswith("rank_output."):
        return "stale copy of the ITM head's row of matches"
    if name.startswith("text_transformer.pooler."):
        return "RoBERTa's own pooler"
    if name.endswith((".attn_mask", ".relative_position_index", ".position_ids", ".token_type_ids")):
        return "buffer that follows from the sizes"
    if "crossattention_t2i.output.LayerNorm." in name:
        return "norm of a cross-attention that has none"
    gate = re.fullmatch(r"text_transformer\.encoder\.layer\.(\d+)\.alpha_t2i", name)
    if gate and int(gate[1]) not in fused:
        return "gate of a text layer that is not fused"
    projection = re.match(r"cross_modal_att_layers\.(\d+)\.", name)
    if projection and int(projection[1]) not in projected:
        return "caption projection of a text layer that needs none"
    return None


def plan_of(names: Iterable[str]) -> Plan:
    """Returns the fusion plan that the names of an official state tell of; empty where they tell of none.

    Raises:
        CheckpointError: as many fused image blocks as text layers are not there.
    """
    blocks, layers = set(), set()
    for name in names:
        if match := re.fullmatch(r"vit_model\.layers\.(\d+)\.blocks\.(\d+)\.attn\.alpha_i2t", name):
            blocks.add((int(match[1]) + 1, int(match[2])))
        if match := re.match(r"text_transformer\.encoder\.layer\.(\d+)\.crossattention_t2i\.", name):
            layers.add(int(match[1]))
    if len(blocks) != len(layers):
        raise CheckpointError(
            f"the checkpoint fuses {len(blocks)} image blocks and {len(layers)} text layers",
            "pairs of one each",
        )
    return tuple((*block, layer) for block, layer in zip(sorted(blocks), sorted(layers), strict=True))


def _joint(plan: Plan) -> list[tuple[str, str]]:
    """Returns (official Linear of keys and values, our image fusion), for each pair of the plan."""
    return [
        (f"{_attention(stage, at)}qkv_text_i2t", f"model.fusion.{k}.image") for k, stage, at, _ in _of(plan)
    ]


def _prefixes(plan: Plan, stages: int) -> list[tuple[str, str]]:
    """Returns (official prefix, our prefix), the more special one first."""
    out = list(HEADS)
    for k, stage, at, layer in _of(plan):
        text = f"text_transformer.encoder.layer.{layer}."
        out += [(_attention(stage, at) + a, f"model.fusion.{k}.image.{b}") for a, b in IMAGE_PARTS]
        out += [(text + a, f"model.fusion.{k}.text.{b}") for a, b in reversed(TEXT_PARTS)]
        if stage < stages:
            out.append((f"cross_modal_att_layers.{layer}.", f"model.caption_projections.{k}."))
    for stage in range(stages - 1):
        out.append((f"vit_model.layers.{stage}.downsample.", f"model.image.layers.{stage + 1}.downsample."))
    return [*out, ("vit_model.", "model.image."), ("text_transformer.", "model.text.")]


def _attention(stage: int, at: int) -> str:
    return f"vit_model.layers.{stage - 1}.blocks.{at}.attn."


def _of(plan: Plan) -> list[tuple[int, int, int, int]]:
    return [(k, *pair) for k, pair in enumerate(plan)]


def _renamed(name: str, pairs: list[tuple[str, str]]) -> str | None:
    for old, new in pairs:
        whole = not old.endswith(".")
        if name == old if whole else name.startswith(old):
            return new + name[len(old) :]
    return None
