"""What every objective must hold, through System, on a tiny SVL or FIBER in float32 without dropout."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dsvlp.recipe import SemVLPModel
from dsvlp.system import System, TrainRequest, build
from dsvlp.types import Batch
from tests.batches import (
    make_batch,
    make_facts,
    make_fiber_recipe,
    make_objects,
    make_recipe,
    make_semvlp_recipe,
    take_pairs,
)

PLAIN = ("itm", "mlm", "segl", "ssul")
RECIPES = {
    "grid": make_recipe(objectives=PLAIN),
    "post": make_recipe("objectives.segl.at=post", "objectives.ssul.at=post", objectives=PLAIN),
    "queries": make_recipe("objectives.spl.unmatched=no_object", objectives=(*PLAIN, "spl")),
    "separate": make_recipe("objectives.mlm.view=masked", "model.share_cross_attention=false"),
    "semvlp": make_semvlp_recipe(),
}
# A contrast depends on what stands beside a pair; its claim of the cut is tests/engine/test_contrast.py's.
CONTRASTS = {
    "fiber": make_fiber_recipe(),
    "contrast": make_recipe(
        "objectives.itc.view=clean",
        "objectives.itm={view='clean', negatives='batch'}",
        "objectives.mlm.tied=false",
        "objectives.mlm.view=masked",
        objectives=("itc", *PLAIN),
    ),
}
each_cuttable = pytest.mark.parametrize("name", sorted(RECIPES))
RECIPES |= CONTRASTS
each_recipe = pytest.mark.parametrize("name", sorted(RECIPES))


def _batch(name: str, **sizes: int) -> Batch:
    if isinstance(RECIPES[name].model, SemVLPModel):
        return make_objects(**sizes)
    return make_batch(image_size=RECIPES[name].model.image_size, **sizes)


def _system(recipe: str) -> System:
    system = build(RECIPES[recipe], make_facts())
    torch.manual_seed(1)  # whatever ran before
    with torch.no_grad():  # far from the start, where all rows look alike
        for name, parameter in system.named_parameters():
            if not name.endswith("temperature"):  # it has bounds
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return system


def _gradients(system: System, batches: list[Batch]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Returns normalised losses and gradients by name of one optimizer step over micro-batches."""
    prepared = [system.prepare(batch) for batch in batches]
    names = list(system.objectives)
    counts = torch.stack([p.counts(names) for p in prepared]).sum(0)
    totals = dict(zip(names, counts.clamp(min=1), strict=True))
    system.zero_grad()
    values = dict.fromkeys(names, 0.0)
    for one in prepared:
        losses = system(TrainRequest(one))
        sum(loss.sum / totals[name] for name, loss in losses.items()).backward()
        for name, loss in losses.items():
            values[name] += float((loss.sum / totals[name]).detach())
    return values, {n: p.grad.clone() for n, p in system.named_parameters() if p.grad is not None}


def _assert_same(first: tuple, second: tuple) -> None:
    for name in first[0]:
        assert abs(first[0][name] - second[0][name]) < 1e-5 * max(1.0, abs(first[0][name])), name
    largest = max(float(g.abs().max()) for g in first[1].values())
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        scale = max(float(gradient.abs().max()), 1e-2 * largest)  # some are sums that cancel
        assert float((gradient - second[1][name]).abs().max()) < 1e-5 * scale, name


@each_cuttable
def test_cutting_the_batch_unevenly_changes_no_gradient(name: str) -> None:
    system, batch = _system(name), _batch(name, pairs=12, captions=2)
    parts = [take_pairs(batch, range(4)), take_pairs(batch, range(4, 12))]
    counts = [system.prepare(part).counts(list(system.objectives)) for part in parts]
    assert (counts[0] != counts[1]).all()
    _assert_same(_gradients(system, [batch]), _gradients(system, parts))


@each_recipe
def test_the_order_of_the_batch_changes_no_gradient(name: str) -> None:
    system, batch = _system(name), _batch(name, pairs=8)
    shuffled = take_pairs(batch, [6, 5, 2, 7, 0, 3, 4, 1])  # even places stay even: SemVLP's halves
    _assert_same(_gradients(system, [batch]), _gradients(system, [shuffled]))


@each_recipe
def test_longer_padding_changes_no_gradient(name: str) -> None:
    system, batch = _system(name), _batch(name)
    texts = len(batch.text_ids)
    longer = replace(
        batch,
        text_ids=torch.cat((batch.text_ids, torch.zeros(texts, 5, dtype=torch.long)), 1),
        text_mask=torch.cat((batch.text_mask, torch.zeros(texts, 5, dtype=torch.bool)), 1),
        special_mask=torch.cat((batch.special_mask, torch.ones(texts, 5, dtype=torch.bool)), 1),
    )
    _assert_same(_gradients(system, [batch]), _gradients(system, [longer]))


@each_recipe
def test_pairs_of_weight_zero_change_no_gradient(name: str) -> None:
    system, batch = _system(name), _batch(name, pairs=12, captions=2)
    part = take_pairs(batch, range(8))
    padded = replace(batch, weight=(torch.arange(12) < 8).float())
    _assert_same(_gradients(system, [part]), _gradients(system, [padded]))


@each_recipe
def test_every_parameter_gets_a_gradient(name: str) -> None:
    system = _system(name)
    _, gradients = _gradients(system, [_batch(name)])
    unread: set[str] = set()
    if name not in (
        "post",
        "fiber",
    ):  # nothing reads the last layer's image stream before a loss after fusion does
        last = f"model.cross.{len(system.model.cross) - 1}."
        ends = (f"{last}image_self.", f"{last}image_feed_forward.", f"{last}cross.1.")
        unread = {n for n, _ in system.named_parameters() if n.startswith(ends)}
    assert {n for n, _ in system.named_parameters()} - gradients.keys() == unread
    assert not [n for n, g in gradients.items() if not g.any() and not n.endswith("key.bias")]


@each_recipe
def test_a_batch_without_targets_gives_zero_loss_and_zero_gradients(name: str) -> None:
    system = _system(name)
    values, gradients = _gradients(system, [replace(_batch(name), weight=torch.zeros(8))])
    assert set(values.values()) == {0.0}
    assert gradients.keys() == _gradients(system, [_batch(name)])[1].keys()
    assert not any(g.any() for g in gradients.values())


@each_recipe
def test_training_on_one_batch_beats_its_best_constant(name: str) -> None:
    system, batch = build(RECIPES[name], make_facts()), _batch(name, pairs=8)
    prepared = system.prepare(batch)
    optimizer = torch.optim.Adam(system.parameters(), lr=3e-3)
    for _ in range(100):
        losses = system(TrainRequest(prepared))
        optimizer.zero_grad()
        sum(loss.sum / loss.count for loss in losses.values()).backward()
        optimizer.step()
    for objective, loss in losses.items():
        targets = prepared.targets[objective]
        part = system.objectives[objective]
        constant = part.constant_loss(part.constant(targets))
        assert float(loss.sum.detach() / loss.count) < constant["loss"], objective
        if "accuracy" in constant:
            correct, count = loss.metrics["accuracy"]
            assert float(correct / count) >= constant["accuracy"], objective


def test_constants_add_up_over_batches() -> None:
    system, batch = build(RECIPES["queries"], make_facts()), make_batch(pairs=8)
    whole = system.prepare(batch).targets
    parts = [system.prepare(take_pairs(batch, rows)).targets for rows in (range(3), range(3, 8))]
    for name, objective in system.objectives.items():
        summed = sum(objective.constant(part[name]) for part in parts)
        assert torch.allclose(summed, objective.constant(whole[name]), atol=1e-5), name
