"""SemVLP's formulas against built models, counted work and the published figures."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dsvlp import recipe, system
from dsvlp.accounting import cost, flops
from dsvlp.system import TrainRequest
from tests.batches import make_facts, make_objects, make_semvlp_recipe

PAIRS = 8
CAPACITY = (  # heads that run at a fixed capacity of positions, which at this size is far above the mean
    "System.objectives.mlm.transform",
    "System.objectives.mlm.decoder",
    "System.objectives.mop.transform",
    "System.objectives.mop.regression",
    "System.objectives.mop.classes",
)
VARIANTS = {
    "halves": (),
    "single": ("model.mode_schedule=single",),
    "two": ("model.mode_schedule=two",),
    "two, two captions": ("model.mode_schedule=two", "data.captions_per_image=2"),
    "cross-attention everywhere": ("model.cross_from=0",),
    "LXMERT's objects": ("model.box_fuse=avg_ln",),
    "a view of its own for words": ("objectives.mlm.view=words",),
    "two passes, nothing shared": ("objectives.mlm.view=words", "engine.share_prefixes=false"),
    "matching alone": ("objectives.mlm=false", "objectives.mop=false", "objectives.qa=false"),
}


def counted(shown: recipe.Recipe) -> float:
    """Returns the FLOP a pair of a training step's forward as torch counts them, without the heads above."""
    built = system.build(shown, make_facts()).train()
    table = shown.model
    batch = make_objects(PAIRS, shown.data.captions_per_image, length=table.text.max_length, vocabulary=40)
    mode = {"single": "single", "two": "two"}.get(table.mode_schedule, "halves")
    prepared = built.prepare(replace(batch, mode=mode))
    # The fused kernels count as nothing on a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        built(TrainRequest(prepared))
    parts = counter.get_flop_counts()
    heads = sum(sum(parts[name].values()) for name in CAPACITY if name in parts)
    return (counter.get_total_flops() - heads) / PAIRS


def predicted(shown: recipe.Recipe) -> float:
    """Returns the formulas' forward, the same heads left out."""
    objectives = shown.objectives.model_copy(update={"mlm": None, "mop": None})
    rest = flops.text_heads(shown.model_copy(update={"objectives": objectives}), 1.0)
    rest += flops.object_heads(shown.model_copy(update={"objectives": objectives}), make_facts())
    costs = flops.components(shown, facts=make_facts())
    return flops.total(costs).forward - costs["heads"].forward + rest.forward


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_work_is_what_torch_counts(overrides):
    shown = make_semvlp_recipe(*overrides)
    assert predicted(shown) == pytest.approx(counted(shown), rel=0.005)


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_parameters_are_exact(overrides):
    shown = make_semvlp_recipe(*overrides)
    with torch.device("meta"):
        built = system.build(shown, make_facts())
    assert flops.parameters(shown, make_facts()) == sum(p.numel() for p in built.parameters())


def test_both_modes_run_equally_often_whatever_takes_turns():
    prices = [
        flops.train_flops(make_semvlp_recipe(f"model.mode_schedule={schedule}"))
        for schedule in ("halves", "step", "bernoulli", "single", "two")
    ]
    halves, step, bernoulli, single, two = prices
    assert halves == step == bernoulli == pytest.approx((single + two) / 2)


def test_evaluation_reads_in_the_mode_of_inference():
    for mode in ("single", "two"):
        shown = recipe.load("pretrain_semvlp", [f"model.inference={mode}"])
        alone = recipe.load("pretrain_semvlp", [f"model.mode_schedule={mode}"])
        assert flops.inference(shown, 20.0)["transformer"] == flops.components(alone)["transformer"]


def test_a_pair_costs_what_the_specification_says():
    """Its table counts the heads of MLM and MOP at all 20 words and 100 objects, we at the masked 15%."""
    everywhere = ["objectives.mlm.probability=0.999", "objectives.mop.predicted=all"]
    assert flops.train_flops(recipe.load("pretrain_semvlp", everywhere)) == pytest.approx(71.6e9, rel=0.005)
    masked = flops.train_flops(recipe.load("pretrain_semvlp"))
    assert 0.93 * 71.6e9 < masked < 0.95 * 71.6e9


def test_parts_have_the_specifications_sizes():
    shown = recipe.load("pretrain_semvlp")
    costs = flops.components(shown)
    assert costs["words"].parameters == 23_837_184
    crossing = 6 * (cost.attention(768, 1, 1) + cost.norm(768)).parameters
    assert crossing == 6 * 2_363_904
    assert costs["transformer"].parameters == 85_054_464 + crossing
