from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsvlp import config, recipe, system
from dsvlp.errors import CheckpointError
from dsvlp.models.fiber_names import plan_of, to_official, to_ours, why_dead
from dsvlp.recipe import FIBERModel
from dsvlp.types import DataFacts
from tests.batches import make_facts, make_fiber_recipe
from tests.models.official import shared

ROBERTA = DataFacts(vocabulary=50265, pad_id=1, cls_id=0, sep_id=2, mask_id=50264)
PAPER = ((3, 14, 6), (3, 15, 7), (3, 16, 8), (3, 17, 9), (4, 0, 10), (4, 1, 11))


def _full_size(**changes: Any) -> system.System:
    """Returns the paper's system without memory."""
    model = config.validate(FIBERModel, {"system": "fiber", "image_size": 384, **changes}, "test")
    with torch.device("meta"):
        return system.build(recipe.load("tiny_fiber").model_copy(update={"model": model}), ROBERTA)


def _official_state() -> dict[str, Tensor]:
    sizes = shared("fiber_coarse_state_dict.json")
    return {name: torch.empty(size, device="meta") for name, size in sizes.items()}


def _million(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_the_full_size_list_maps_completely_onto_the_full_size_system():
    official = _official_state()
    own = {name: tuple(tensor.shape) for name, tensor in _full_size().state_dict().items()}
    mapped = {name: tuple(tensor.shape) for name, tensor in to_ours(official, PAPER).items()}
    assert mapped == own


def test_what_is_left_out_of_the_full_size_list_is_what_the_specification_calls_dead():
    official = _official_state()
    reasons = [reason for name in official if (reason := why_dead(name, PAPER)) is not None]
    assert {reason: reasons.count(reason) for reason in reasons} == {
        "queue of past inputs": 7,
        "stale copy of the ITM head's row of matches": 2,
        "RoBERTa's own pooler": 2,
        "buffer that follows from the sizes": 36,
        "norm of a cross-attention that has none": 12,
        "gate of a text layer that is not fused": 6,
    }


def test_the_full_size_model_has_the_published_parameter_counts():
    built = _full_size()
    model = built.model
    assert _million(model.image) == pytest.approx(86.88, abs=0.005)
    assert _million(model.text.embeddings) == pytest.approx(39.00, abs=0.005)
    assert _million(model.text.encoder) == pytest.approx(85.05, abs=0.005)
    assert [round(_million(pair.image), 3) for pair in model.fusion] == [1.314] * 4 + [3.676] * 2
    norm = 2 * 768 / 1e6  # of the official cross-attention's output: dead, and not ours
    assert [round(_million(pair.text) + norm, 3) for pair in model.fusion] == [1.971] * 4 + [2.757] * 2
    pooler, rank = 0.5906, 0.0015
    assert _million(built) == pytest.approx(281.90 - pooler - rank - 6 * norm, abs=0.005)


def test_the_plan_is_read_from_the_names():
    assert plan_of(shared("fiber_coarse_state_dict.json")) == PAPER
    assert plan_of(["vit_model.norm.weight"]) == ()
    with pytest.raises(CheckpointError, match="1 image blocks and 0 text layers"):
        plan_of(["vit_model.layers.2.blocks.3.attn.alpha_i2t"])


@pytest.mark.parametrize("norm", [True, False])
def test_another_plan_goes_there_and_back_bit_for_bit(norm: bool):
    made = make_fiber_recipe(
        "model.fusion.plan=[[2, 0, 0], [3, 1, 3]]",
        f"model.fusion.image_query_norm={str(norm).lower()}",
        "model.captioning=true",
    )
    plan, state = made.model.fusion.plan, system.build(made, make_facts()).state_dict()
    official = to_official(state, plan)
    assert any("norm_i2t_i" in name for name in official) == norm
    assert {"cross_modal_att_layers.0.weight", "cross_modal_att_layers.3.bias"} <= official.keys()
    assert plan_of(official) == plan
    back = to_ours(official, plan)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_keys_stand_before_values_in_the_joint_linear():
    state = {"vit_model.layers.2.blocks.14.attn.qkv_text_i2t.weight": torch.arange(8.0).view(4, 2)}
    out = to_ours(state, PAPER)
    assert torch.equal(out["model.fusion.0.image.key.weight"], torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    assert torch.equal(out["model.fusion.0.image.value.weight"], torch.tensor([[4.0, 5.0], [6.0, 7.0]]))


def test_the_merging_moves_to_the_next_stage():
    out = to_ours({"vit_model.layers.0.downsample.norm.weight": torch.ones(4)}, PAPER)
    assert list(out) == ["model.image.layers.1.downsample.norm.weight"]


def test_strange_names_are_named():
    with pytest.raises(CheckpointError, match=r"backbone\.fusion\.weight"):
        to_ours({"backbone.fusion.weight": torch.ones(1)}, PAPER)
    with pytest.raises(CheckpointError, match=r"segl\.head\.weight"):
        to_official({"objectives.segl.head.weight": torch.ones(1)}, PAPER)
    with pytest.raises(CheckpointError, match=r"image\.key\.weight"):
        to_official({"model.fusion.0.image.key.weight": torch.ones(1)}, PAPER)


def test_our_queue_has_no_official_form():
    assert to_official({"objectives.itc.queue.image": torch.ones(4, 2)}, PAPER) == {}
