"""FIBER's and METER's formulas against built models, counted work and the published figures."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dsvlp import recipe, system
from dsvlp.accounting import flops, flops_fiber
from dsvlp.accounting.passes import runs
from dsvlp.system import TrainRequest
from dsvlp.types import DataFacts
from tests.batches import make_batch, make_fetched

PAIRS = 4
QUEUE = ("objectives.itm.negatives=queue", "objectives.itc.queue=8")
METER = ['model={system="meter",image_size=384}']
VARIANTS = {
    "shared": (),
    "separate": ("engine.share_prefixes=false",),
    "one view": ("objectives.itc=false", "objectives.itm.negatives=loader", "objectives.mlm.view=clean"),
    "two captions an image": ("data.captions_per_image=2",),
    "two captions, separate": ("data.captions_per_image=2", "engine.share_prefixes=false"),
    "swapped texts": ("objectives.itm.negatives=loader", "objectives.itm.view=swapped"),
    "no contrast": ("objectives.itc=false", "objectives.itm.negatives=loader"),
    "matching alone": ("objectives.itc=false", "objectives.itm.negatives=loader", "objectives.mlm=false"),
    "fetched negatives": QUEUE,
    "fetched negatives, separate": (*QUEUE, "engine.share_prefixes=false"),
    "negatives at once": (*QUEUE, "objectives.itm.negatives_delay=0"),
    "negatives at once, separate": (
        *QUEUE,
        "objectives.itm.negatives_delay=0",
        "engine.share_prefixes=false",
    ),
    "another plan": ("model.fusion.plan=[[2,1,0],[3,1,1]]",),
    "from a stage's start": ("model.fusion.plan=[[3,0,1]]",),
}


def tiny(kind: str, *overrides: str) -> recipe.Recipe:
    """Returns a small FIBER whose stages differ in windows, or METER with the same towers."""
    image = "model.image={width=8,depths=[2,2,3,2],heads=[1,2,2,4],mlp_ratio=2.0,drop_path=0.0}"
    text = (
        "model.text={layers=4,width=16,heads=2,feed_forward=40,vocabulary=50,positions=14,max_length=12,"
        "padding_id=0,dropout=0.0}"
    )
    if kind == "fiber":
        model = ['model.system="fiber"', "model.fusion.plan=[[3,1,1],[3,2,2],[4,0,3]]"]
    else:
        model = ['model={system="meter",image_size=64,fusion={layers=2,heads=4,feed_forward=24}}']
    sizes = ["model.image_size=64", "model.pretrained=false", f"batch.contrastive_pairs={PAIRS}"]
    return recipe.load("pretrain_fiber", [*model, image, text, *sizes, *overrides])


def facts(shown: recipe.Recipe) -> DataFacts:
    return DataFacts(shown.model.text.vocabulary, shown.model.text.padding_id, 1, 2, 3)


def counted(shown: recipe.Recipe) -> float:
    """Returns the FLOP a pair of a training step's forward as torch counts them, MLM's head left out.

    The head runs at a fixed capacity of positions, which at this size is far above the mean.
    """
    built = system.build(shown, facts(shown)).train()
    batch = make_batch(
        PAIRS,
        shown.data.captions_per_image,
        shown.model.image_size,
        shown.model.text.max_length,
        shown.model.text.vocabulary,
        partners=recipe.swaps_texts(shown),
    )
    length, vocabulary = shown.model.text.max_length, shown.model.text.vocabulary
    fetched = make_fetched(PAIRS, shown.model.image_size, length, vocabulary)
    if recipe.fetches_negatives(shown) and shown.objectives.itm.negatives_delay:
        batch = replace(batch, fetched=fetched)
    prepared = built.prepare(batch)
    counter = FlopCounterMode(display=False)
    # The fused kernels count as nothing on a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        built(TrainRequest(prepared, lambda samples: fetched))
    by_module = counter.get_flop_counts()
    parts = ("System.objectives.mlm.transform", "System.objectives.mlm.decoder")
    head = sum(sum(by_module[part].values()) for part in parts if part in by_module)
    return (counter.get_total_flops() - head) / PAIRS


def predicted(shown: recipe.Recipe) -> float:
    """Returns the formulas' forward, MLM's head left out."""
    table, mlm = shown.model.text, shown.objectives.mlm
    rows = mlm.probability * table.max_length if mlm is not None else 0
    head = 2 * rows * table.width * (table.width + table.vocabulary)
    return flops.total(flops.components(shown)).forward - head


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("kind", ["fiber", "meter"])
def test_work_is_what_torch_counts(kind, overrides):
    shown = tiny(kind, *(text for text in overrides if kind == "fiber" or "plan" not in text))
    assert predicted(shown) == pytest.approx(counted(shown), rel=0.01)


@pytest.mark.parametrize(
    "overrides",
    [(), ("model.captioning=true",), ("model.fusion.image_query_norm=false",), ("objectives.mlm.tied=true",)],
    ids=["plain", "captions", "no query norm", "tied"],
)
def test_parameters_are_exact(overrides):
    shown = tiny("fiber", *overrides)
    with torch.device("meta"):
        built = system.build(shown, facts(shown))
    assert flops.parameters(shown) == sum(p.numel() for p in built.parameters())


@pytest.mark.parametrize("model", [(), METER], ids=["fiber", "meter"])
def test_parameters_at_full_size_are_exact(model):
    shown = recipe.load("pretrain_fiber", [*model, "model.pretrained=false"])
    with torch.device("meta"):
        built = system.build(shown, facts(shown))
    assert flops.parameters(shown) == sum(p.numel() for p in built.parameters())


def test_a_pair_costs_what_the_specification_says():
    """Its table counts MLM's head at all 40 positions, we at the masked 15%: under 1% less."""
    queue = ["objectives.itm.negatives=queue", "objectives.itc.queue=4096"]
    for overrides, expected in ((), 752), (["engine.share_prefixes=false"], 1642), (queue, 975):
        shown = recipe.load("pretrain_fiber", overrides)
        assert flops.train_flops(shown) == pytest.approx(expected * 1e9, rel=0.01)


def test_parts_have_the_specifications_sizes():
    """FIBER, 1.7, in millions; its whole of 281.90 holds 0.61 that no pass uses."""
    shown = recipe.load("pretrain_fiber")
    costs = {name: cost.parameters / 1e6 for name, cost in flops.components(shown).items()}
    assert costs["image tower"] == pytest.approx(86.88, abs=0.005)
    assert costs["text tower"] == pytest.approx(39.00 + 85.05, abs=0.01)
    assert costs["fusion"] == pytest.approx(12.61 + 13.40 + (2.76 + 2.36) / 2, abs=0.02)
    assert costs["heads"] == pytest.approx(39.25 + 0.003 + (2.76 + 2.36) / 2, abs=0.01)
    dead = 768 * 768 + 768 + 6 * 2 * 768 + 6 + 1537  # pooler, six norms, six gates, rank_output
    assert flops.parameters(shown) == pytest.approx(281.90e6 - dead, abs=0.005e6)


def test_swin_base_has_its_published_size_and_work():
    """Liu et al.: 47.1 G multiply-adds at 384 pixels, classifier included."""
    tower = recipe.load("pretrain_fiber").model.image
    below, above = flops_fiber.swin(tower, 384, (2, 14))
    assert (below.forward + above.forward) / 2 == pytest.approx(47.1e9, rel=0.005)
    for first in (0, 0), (1, 1), (3, 0), (4, 0):
        one, other = flops_fiber.swin(tower, 384, first)
        assert (one + other).parameters == (below + above).parameters
        assert (one + other).forward == pytest.approx((below + above).forward)


def test_fusion_inside_costs_half_of_fusion_on_top():
    """FIBER, 5: about 10 against 22 GFLOP forward for a pair's fusion."""
    inside, on_top = (recipe.load("pretrain_fiber", model) for model in ([], METER))
    assert runs(inside).fused == 4
    assert flops.components(inside)["fusion"].forward / 4 == pytest.approx(10e9, rel=0.05)
    assert flops.components(on_top)["fusion"].forward / 4 == pytest.approx(22e9, rel=0.05)


def test_captions_of_an_image_share_what_no_text_touches():
    one = recipe.load("pretrain_fiber")
    four = recipe.load("pretrain_fiber", ["data.captions_per_image=4"])
    a, b = runs(one), runs(four)
    assert (b.images, b.unimodal_images) == (a.images / 4, a.unimodal_images / 4)
    assert (b.texts, b.unimodal_texts, b.fused) == (a.texts, a.unimodal_texts, a.fused)
    assert flops.parameters(one) == flops.parameters(four)
