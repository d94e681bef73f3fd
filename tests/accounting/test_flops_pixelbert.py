"""Pixel-BERT's formulas against built models, counted work and the published figures."""

from dataclasses import replace

import dsvlp.vision  # noqa: F401  # isort: skip

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dsvlp import catalog, recipe, system
from dsvlp.accounting import cnn, flops, flops_pixelbert, resnet
from dsvlp.errors import RecipeError
from dsvlp.models.cnn import backbone
from dsvlp.models.counted import count
from dsvlp.system import TrainRequest
from dsvlp.types import DataFacts
from tests.batches import make_batch

PAIRS = 4
ASPECT = ("model.image_size=96", "model.longest_side=160", "model.pixels=1")
VARIANTS = {
    "all pixels": (),
    "four captions an image": ("data.captions_per_image=4",),
    "a draw of pixels": ("model.pixels=5",),
    "more pixels than there are": ("model.pixels=50",),
    "4:3": ASPECT,
    "lines and columns": ("model.positions=learned",),
    "sines, normed": ("model.positions=sine", "model.norm_pixels=true"),
    "bottlenecks in groups": ("model.image.name=resnext50_32x4d",),
    "deep stem": ("model.image.name=resnet10t",),
    "no matching": ("objectives.itm=false",),
    "separate passes": ("engine.share_prefixes=false", "objectives.mlm.view=masked"),
    "a CNN without a formula": ("model.image.name=test_convnext",),
    "one that timm cannot recompute": ("model.image.name=dla34",),
}


def tiny(*overrides: str) -> recipe.Recipe:
    sizes = ("data.captions_per_image=1", "model.positions=none", "model.text.vocabulary=40")
    return recipe.load("tiny_pixelbert", [*sizes, "model.image.batch_norm=frozen", *overrides])


def facts(shown: recipe.Recipe) -> DataFacts:
    return DataFacts(shown.model.text.vocabulary, 0, 1, 2, 3)


def counted(shown: recipe.Recipe) -> float:
    """Returns the FLOP a pair of a training step's forward as torch counts them, MLM's head left out."""
    built = system.build(shown, facts(shown)).train()
    sizes = (PAIRS, shown.data.captions_per_image, 8, shown.model.text.max_length)
    batch = make_batch(*sizes, shown.model.text.vocabulary, partners=recipe.swaps_texts(shown))
    images = torch.zeros(len(batch.images), 3, *flops_pixelbert.picture(shown.model))
    prepared = built.prepare(replace(batch, images=images))
    # The fused kernels count as nothing on a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        built(TrainRequest(prepared))
    parts = counter.get_flop_counts()
    head = sum(sum(parts[f"System.objectives.mlm.{part}"].values()) for part in ("transform", "decoder"))
    return (counter.get_total_flops() - head) / PAIRS


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_work_is_what_torch_counts(overrides):
    shown = tiny(*overrides)
    rows, d = shown.objectives.mlm.probability * shown.model.text.max_length, shown.model.text.width
    head = 2 * rows * d * (d + shown.model.text.vocabulary)
    predicted = flops.total(flops.components(shown)).forward - head
    assert predicted == pytest.approx(counted(shown), rel=0.005)


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_parameters_are_exact(overrides):
    shown = tiny(*overrides)
    with torch.device("meta"):
        built = system.build(shown, facts(shown))
    assert flops.parameters(shown) == sum(p.numel() for p in built.parameters())


@pytest.mark.parametrize("name", resnet.SHAPES)
def test_every_resnet_costs_what_torch_counts_of_a_picture_that_strides_do_not_divide(name):
    cost, channels = cnn.trunk(name, (200, 267))
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=0, global_pool="")
        with FlopCounterMode(display=False) as counter:
            out = net.forward_features(torch.empty(1, 3, 200, 267))
    assert cost.parameters == sum(p.numel() for p in net.parameters())
    assert cost.forward == counter.get_total_flops()
    assert channels == out.shape[1]


def test_a_cnn_without_a_formula_is_counted_as_one_with_it():
    by_formula, channels = cnn.trunk("resnet18", (96, 128))
    found = count("resnet18", 96, 128)
    assert (found.parameters, found.forward, found.channels) == (
        by_formula.parameters,
        by_formula.forward,
        channels,
    )


@pytest.mark.parametrize("name", ["vgg16", "dla34", "skresnet18"])
def test_a_counted_cnn_has_the_parameters_of_the_built_one_and_keeps_no_more_recomputed(name):
    found = count(name, 96, 128)
    with torch.device("meta"):
        assert found.parameters == sum(p.numel() for p in backbone(name).parameters())
    assert 0 < found.kept_recomputing <= found.kept


@pytest.mark.parametrize("name", ["dla34", "hrnet_w18"])
def test_a_cnn_that_reads_whole_strides_alone_is_counted_on_the_canvas_of_a_4_to_3_picture(name):
    assert count(name, 200, 266) == count(name, 224, 288)


def test_where_nothing_can_count_the_known_names_are_told(monkeypatch):
    def absent(entry: catalog.Entry) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(catalog.Entry, "load", absent)
    with pytest.raises(RecipeError, match=r"'convnext_base' has no cost formula.* no torch .*resnet50"):
        cnn.trunk("convnext_base", (64, 64))


@pytest.mark.parametrize(
    ("overrides", "picture", "cells", "kept"),
    [
        ((), (800, 1066), 204, 100),
        (("model.pixels=0",), (800, 1066), 204, 204),
        (("model.image_size=600", "model.longest_side=1000"), (600, 800), 108, 100),
        (("model.longest_side=800",), (600, 800), 108, 100),
        (("model.longest_side=false",), (800, 800), 144, 100),
    ],
)
def test_the_priced_picture_is_4_to_3_within_the_longest_side(overrides, picture, cells, kept):
    table = recipe.load("pretrain_pixelbert", overrides if "false" not in str(overrides) else ()).model
    if "false" in str(overrides):
        table = table.model_copy(update={"longest_side": None})
    assert flops_pixelbert.picture(table) == picture
    assert (flops_pixelbert.cells(table), flops_pixelbert.sampled(table)) == (cells, kept)


def test_a_pair_costs_what_the_specification_says():
    """With four captions an image its table counts MLM's head at all 20 positions: 1.4% more."""
    one, four = (recipe.load(f"pretrain_pixelbert{name}") for name in ("", "_grouped"))
    assert flops.train_flops(one) == pytest.approx(483e9, rel=0.01)
    assert flops.train_flops(four) == pytest.approx(170e9, rel=0.01)
    assert flops.parameters(one) == flops.parameters(four)


def test_captions_of_an_image_share_the_cnn_alone():
    one, four = (flops.components(recipe.load(f"pretrain_pixelbert{name}")) for name in ("", "_grouped"))
    assert four["image tower"].forward == pytest.approx(one["image tower"].forward / 4)
    assert four["transformer"] == one["transformer"]


def test_evaluation_keeps_all_pixels():
    drawn, everything = (recipe.load("pretrain_pixelbert", [f"model.pixels={kept}"]) for kept in (100, 0))
    found = flops.inference(drawn, 20.0)["transformer"].forward
    assert found == flops.components(everything)["transformer"].forward
