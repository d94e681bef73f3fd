"""Formulas of what is kept until the backward, against the storages that autograd saves on the CPU."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch

from dsvlp import recipe, system
from dsvlp.accounting import activations, memory
from dsvlp.accounting.flops_pixelbert import picture
from dsvlp.objectives.mlm import MLM
from dsvlp.system import Prepared, System, TrainRequest
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
    "pixelbert": ("tiny_pixelbert",),
    "pixelbert, statistics frozen, bottlenecks": (
        "tiny_pixelbert",
        'model.image={name="resnet50",batch_norm="frozen"}',
        "model.pixels=4",
        "data.captions_per_image=1",
        "model.text.dropout=0.1",
    ),
    "pixelbert, 4:3": (
        "tiny_pixelbert",
        "model.image_size=96",
        "model.longest_side=160",
        "model.norm_pixels=true",
    ),
    "pixelbert, a CNN without a formula": ("tiny_pixelbert", 'model.image.name="test_convnext"'),
    "semvlp": ("tiny_semvlp", "objectives.qa={}"),
    "semvlp, single": ("tiny_semvlp", "model.mode_schedule=single", "model.text.dropout=0.1"),
    "semvlp, two": ("tiny_semvlp", "model.mode_schedule=two", "data.captions_per_image=2"),
    "semvlp, as LXMERT": ("tiny_semvlp", "model.box_fuse=avg_ln", "objectives.mop.predicted=all"),
    "semvlp, full width": (
        "pretrain_semvlp",
        "model.pretrained=false",
        "model.text.layers=2",
        "model.cross_from=1",
        "engine.precision=fp32",
    ),
}


def built(shown: recipe.Recipe, facts: DataFacts) -> tuple[System, TrainRequest]:
    """Returns a system in training and a request of PAIRS pairs."""
    out = system.build(shown, facts).train()
    return out, TrainRequest(prepared(shown, out))


def prepared(shown: recipe.Recipe, trained: System) -> Prepared:
    """Returns PAIRS pairs with their targets."""
    text, table = shown.model.text, shown.model
    size = getattr(table, "image_size", 8)
    sizes = (PAIRS, shown.data.captions_per_image, size, text.max_length, text.vocabulary)
    batch = make_batch(*sizes, partners=recipe.swaps_texts(shown))
    if recipe.fetches_negatives(shown):
        batch = replace(batch, fetched=make_fetched(PAIRS, size, text.max_length, text.vocabulary))
    if isinstance(table, recipe.PixelBERTModel):
        batch = replace(batch, images=torch.rand(len(batch.images), 3, *picture(table)))
    if isinstance(table, recipe.SemVLPModel):
        shape, mode = (len(batch.images), table.objects), table.mode_schedule
        batch = replace(
            batch,
            images=torch.rand(*shape, table.feature_width + 4).half(),
            object_labels=torch.zeros(shape, dtype=torch.int64),
            object_confidences=torch.ones(shape),
            mode="halves" if mode in ("step", "bernoulli") else mode,
        )
    return trained.prepare(batch)


def saved(trained: System, request: TrainRequest, half: bool = False) -> int:
    """Returns the bytes that autograd saves in a forward: each storage once, no parameters, no buffers."""
    own = {t.untyped_storage()._cdata for t in (*trained.parameters(), *trained.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage  # held, so that no address is used twice
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=half):
        losses = trained(request)
    assert losses
    return sum(storage.nbytes() for storage in storages.values())


def on_meta(value: Any) -> Any:
    """Returns a value whose tensors are shapes alone."""
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if isinstance(value, dict):
        return {key: on_meta(inner) for key, inner in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: on_meta(getattr(value, field.name)) for field in fields(value)})
    return value


def check_every_mode(
    shown: recipe.Recipe, facts: DataFacts, trained: System, request: TrainRequest, within: float
) -> None:
    for mode in MODES:
        trained.model.set_activation_checkpointing(mode)
        engine = shown.engine.model_copy(update={"activation_checkpointing": mode})
        recomputing = shown.model_copy(update={"engine": engine})
        kept = activations.of_micro_batch(recomputing, PAIRS, cpu=True, facts=facts).kept
        assert kept == pytest.approx(saved(trained, request), rel=within), mode


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_activations_are_what_autograd_saves(variant):
    name, *overrides = variant
    shown = recipe.load(name, overrides)
    facts = facts_for(shown, 10, 11)
    check_every_mode(shown, facts, *built(shown, facts), within=0.12)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("pretrain_pixelbert", ()),
        ("pretrain_pixelbert_grouped", ()),
        ("pretrain_pixelbert", ("model.image.name=resnext101_32x8d", "model.image.batch_norm=train")),
        ("pretrain_semvlp", ()),
    ],
)
def test_activations_at_full_size_are_what_autograd_saves_of_shapes_alone(name, more):
    """On the meta device; attention is not fused there, so its probabilities are saved too."""
    exact = ("engine.precision=fp32", "model.pretrained=false", "model.text.dropout=0.0")
    shown = recipe.load(name, [*exact, *more])
    facts = facts_for(shown, 10, 11)
    with torch.device("meta"):
        trained = system.build(shown, facts).train()
    request = TrainRequest(on_meta(prepared(shown, trained)))
    check_every_mode(shown, facts, trained, request, within=0.1)


@pytest.mark.parametrize("name", ["tiny_svl", "tiny_fiber", "tiny_meter", "tiny_pixelbert", "tiny_semvlp"])
def test_activations_in_bf16_are_what_autograd_saves_with_the_weights_copies(name):
    """A CPU's autocast runs the same products in bf16, but norms of bf16 in bf16 where a GPU's makes fp32."""
    shown = recipe.load(name, ["engine.precision=bf16"])
    facts = facts_for(shown, 10, 11)
    trained, request = built(shown, facts)
    kept = activations.of_micro_batch(shown, PAIRS, cpu=True, facts=facts).kept
    copies = memory.weight_copies(shown, sum(p.numel() for p in trained.parameters()))
    assert 0.8 * (kept + copies) < saved(trained, request, half=True) < 1.05 * (kept + copies)


@pytest.mark.parametrize(
    "name",
    [
        "pretrain_svl",
        "pretrain_fiber",
        "pretrain_meter",
        "pretrain_svl_resnet50",
        "pretrain_pixelbert",
        "pretrain_semvlp",
    ],
)
def test_recomputation_keeps_less_and_computes_a_block_again(name):
    found = {
        mode: activations.of_micro_batch(recipe.load(name, [f"engine.activation_checkpointing={mode}"]), 64)
        for mode in MODES
    }
    assert found["none"].kept > found["selective"].kept > found["full"].kept
    assert found["none"].recomputed == 0 < found["selective"].recomputed <= found["full"].recomputed


@pytest.mark.parametrize(
    "name", ["pretrain_svl", "pretrain_fiber", "pretrain_meter", "pretrain_pixelbert", "pretrain_semvlp"]
)
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
