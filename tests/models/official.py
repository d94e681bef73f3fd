"""The official FIBER's numbers, for parity tests: sizes, weights, inputs, outputs, gradients."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dsvlp import recipe, system
from dsvlp.models.fiber_names import Plan, to_ours
from dsvlp.recipe import Recipe
from dsvlp.tasks.answers import NLVR2Head, VQAHead
from dsvlp.types import Batch, DataFacts

FOLDER = Path(__file__).parents[3] / "shared" / "parity"


def shared(name: str) -> dict[str, Any]:
    """Returns one of the full-size lists, which no environment variable moves."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    return dict(json.loads(path.read_text()))


@dataclass(frozen=True)
class Official:
    """One set of numbers of the official model."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    gradient_norms: dict[str, float | None]

    @property
    def plan(self) -> Plan:
        """The fusion plan as our recipes write it."""
        numbers = [
            [int(n) for n in re.findall(r"\d+", " ".join(pair))] for pair in self.config["fusion"]["pairs"]
        ]
        return tuple((stage, block, layer) for stage, block, layer in numbers)

    @property
    def batch(self) -> Batch:
        """The inputs as one view: pair k is image k and text k."""
        ids, mask = self.inputs["text_ids"], self.inputs["text_masks"].bool()
        own = torch.arange(len(ids))
        return Batch(
            images=self.inputs["image"],
            text_ids=ids,
            text_mask=mask,
            special_mask=~mask,
            pairs=torch.stack((own, own), 1),
            partner=own,
            matched=own >= 0,
            weight=torch.ones(len(own)),
            image_keys=own,
            pair_keys=own,
            samples=own,
            rows=own,
        )

    @property
    def masked(self) -> Batch:
        """The same view with some words hidden."""
        return replace(self.batch, text_ids=self.inputs["text_ids_mlm"])


@cache
def official() -> Official:
    """Returns the set that `DSVLP_PARITY` names, by default the small model's."""
    folder = Path(os.environ.get("DSVLP_PARITY", FOLDER / "fiber_coarse_nano"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine; DSVLP_PARITY names another")
    tensors = (load_file(folder / f"{n}.safetensors") for n in ("weights", "inputs", "outputs", "gradients"))
    config, norms = (json.loads((folder / n).read_text()) for n in ("config.json", "gradient_norms.json"))
    return Official(config, *tensors, norms)


def sizes(theirs: Official, captioning: bool) -> Recipe:
    """Returns a recipe of the official model's sizes."""
    swin, roberta, fusion = (theirs.config[name] for name in ("swin", "roberta", "fusion"))
    keys: dict[str, Any] = {
        "image_size": swin["image_size"],
        "image.patch_size": swin["patch_size"],
        "image.width": swin["embed_dim"],
        "image.depths": swin["depths"],
        "image.heads": swin["num_heads"],
        "image.window": swin["window_size"],
        "image.mlp_ratio": swin["mlp_ratio"],
        "text.width": roberta["hidden_size"],
        "text.layers": roberta["num_hidden_layers"],
        "text.heads": roberta["num_attention_heads"],
        "text.feed_forward": roberta["intermediate_size"],
        "text.vocabulary": roberta["vocab_size"],
        "text.positions": roberta["max_position_embeddings"],
        "text.padding_id": roberta["pad_token_id"],
        "text.max_length": theirs.inputs["text_ids"].shape[1],
        "fusion.plan": [list(pair) for pair in theirs.plan],
        "fusion.image_query_norm": fusion["image_query_norm"],
        "captioning": captioning,
    }
    return recipe.load("tiny_fiber", [f"model.{key}={json.dumps(value)}" for key, value in keys.items()])


@dataclass(frozen=True)
class Ours:
    """Our system and heads with the official weights, in eval mode; what was left over of the weights."""

    system: system.System
    vqa: VQAHead
    nlvr2: NLVR2Head
    left_over: set[str]
    missing: set[str]


@cache
def ours() -> Ours:
    """Returns our model of the official sizes with its weights."""
    theirs = official()
    roberta = theirs.config["roberta"]
    facts = DataFacts(
        roberta["vocab_size"],
        roberta["pad_token_id"],
        roberta["bos_token_id"],
        roberta["eos_token_id"],
        roberta["vocab_size"] - 1,
    )
    built = system.build(sizes(theirs, captioning=True), facts).eval()
    width = built.model.width
    vqa = VQAHead(2 * width, theirs.config["heads"]["vqa_answers"], width).eval()
    nlvr2 = NLVR2Head(2 * width, width).eval()
    state = to_ours(theirs.weights, theirs.plan, len(theirs.config["swin"]["depths"]))
    used, missing = set(), set()
    for prefix, module in (("", built), ("objectives.vqa.head.", vqa), ("objectives.nlvr2.head.", nlvr2)):
        own = {prefix + name: tensor for name, tensor in module.state_dict().items()}
        used |= own.keys()
        missing |= own.keys() - state.keys()
        module.load_state_dict({name.removeprefix(prefix): state.get(name, own[name]) for name in own})
    return Ours(built, vqa, nlvr2, state.keys() - used, missing)
