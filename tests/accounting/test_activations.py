"""Formulas of what is kept until the backward, against the storages that autograd saves on the CPU."""

from dataclasses import replace

import pytest
import torch

from dsvlp import recipe, system
from dsvlp.accounting import activations, memory
from dsvlp.objectives.mlm import MLM
from dsvlp.system import System, TrainRequest
from dsvlp.types import DataFacts
from tests.accounting.test_flops import facts_for
from tests.batches import make_batch, make_fetched

PAIRS = 4
MODES = ("none", "selective", "full")
RESNET = 'model.image={kind="resnet",name="resnet18"}'
VARIANTS = {
    "svl": ("tiny_svl",),
    "svl, dropout": ("tiny_svl", "model.text.dropout=0.1"),
    "svl, queries": ("tiny_svl", "model.visual_queries=5", "objectives.segl=false", "objectives.spl={}"),
    "svl, resnet": ("tiny_svl", RESNET, "model.image_size=64", "data.synthetic.image_size=64"),
    "fiber": ("tiny_fiber",),
    "fiber, separate passes": ("tiny_fiber", "engine.share_prefixes=false"),
    "fiber, two captions": ("tiny_fiber", "data.captions_per_image=2"),
    "fiber, queue": ("tiny_fiber", "objectives.itm.negatives=queue", "objectives.itc.queue=8"),
    "meter": ("tiny_meter",),
}


def built(shown: recipe.Recipe, facts: DataFacts) -> tuple[System, TrainRequest]:
    """Returns a system in training and a request of PAIRS pairs."""
    out, text, size = system.build(shown, facts).train(), shown.model.text, shown.model.image_size
    sizes = (PAIRS, shown.data.captions_per_image, size, text.max_length, text.vocabulary)
    batch = make_batch(*sizes, partners=recipe.swaps_texts(shown))
    if recipe.fetches_negatives(shown):
        batch = replace(batch, fetched=make_fetched(PAIRS, size, text.max_length, text.vocabulary))
    return out, TrainRequest(out.prepare(batch))


def saved(trained: System, request: TrainRequest, half: bool = False) -> int:
    """Returns the bytes that autograd saves in a forward: each storage once, no parameters, no buffers."""
    own = {t.untyped_storage().data_ptr() for t in (*trained.parameters(), *trained.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=half):
        losses = trained(request)
    assert losses
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_activations_are_what_autograd_saves(variant):
    name, *overrides = variant
    shown = recipe.load(name, overrides)
    facts = facts_for(shown, 10, 11)
    trained, request = built(shown, facts)
    for mode in MODES:
        trained.model.set_activation_checkpointing(mode)
        engine = shown.engine.model_copy(update={"activation_checkpointing": mode})
        recomputing = shown.model_copy(update={"engine": engine})
        kept = activations.of_micro_batch(recomputing, PAIRS, cpu=True, facts=facts).kept
        assert kept == pytest.approx(saved(trained, request), rel=0.12), mode


@pytest.mark.parametrize("name", ["tiny_svl", "tiny_fiber", "tiny_meter"])
def test_activations_in_bf16_are_what_autograd_saves_with_the_weights_copies(name):
    """A CPU's autocast runs the same products in bf16, but norms of bf16 in bf16 where a GPU's makes fp32."""
    shown = recipe.load(name, ["engine.precision=bf16"])
    facts = facts_for(shown, 10, 11)
    trained, request = built(shown, facts)
    kept = activations.of_micro_batch(shown, PAIRS, cpu=True, facts=facts).kept
    copies = memory.weight_copies(shown, sum(p.numel() for p in trained.parameters()))
    assert 0.8 * (kept + copies) < saved(trained, request, half=True) < 1.05 * (kept + copies)


@pytest.mark.parametrize(
    "name", ["pretrain_svl", "pretrain_fiber", "pretrain_meter", "pretrain_svl_resnet50"]
)
def test_recomputation_keeps_less_and_computes_a_block_again(name):
    found = {
        mode: activations.of_micro_batch(recipe.load(name, [f"engine.activation_checkpointing={mode}"]), 64)
        for mode in MODES
    }
    assert found["none"].kept > found["selective"].kept > found["full"].kept
    assert found["none"].recomputed == 0 < found["selective"].recomputed <= found["full"].recomputed


@pytest.mark.parametrize("name", ["pretrain_svl", "pretrain_fiber", "pretrain_meter"])
def test_half_precision_keeps_between_half_and_all_of_the_bytes(name):
    full = activations.of_micro_batch(recipe.load(name, ["engine.precision=fp32"]), 64).kept
    half = activations.of_micro_batch(recipe.load(name, ["engine.precision=bf16"]), 64).kept
    assert 0.5 * full < half < 0.8 * full


def test_twice_the_pairs_keep_twice_as_much_but_for_the_masked_positions_slack():
    shown = recipe.load("pretrain_fiber")
    one, two = (activations.of_micro_batch(shown, pairs).kept for pairs in (32, 64))
    assert 1.95 * one < two <= 2 * one


def test_masked_positions_capacity_is_the_objectives_own():
    shown = recipe.load("tiny_svl")
    trained, _ = built(shown, facts_for(shown, 10, 11))
    mlm = trained.objectives["mlm"]
    assert isinstance(mlm, MLM)
    for positions in (20, 640, 100_000):
        share = shown.objectives.mlm.probability
        assert activations.masked_capacity(positions, share) == mlm.capacity(positions)
