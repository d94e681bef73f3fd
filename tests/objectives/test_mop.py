from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dsvlp.errors import RecipeError
from dsvlp.objectives.itm import ITM
from dsvlp.objectives.mop import MOP, MOPTargets
from dsvlp.recipe import ITM as ITMTable
from dsvlp.recipe import MOP as Table
from dsvlp.types import Batch
from tests.batches import FEATURES, OBJECTS, SHAPES, make_facts, make_objects
from tests.objectives.fakes import FakePasses

WIDTH, CLASSES = 16, len(SHAPES.names)


class Model:
    """What the objective must know of a model."""

    width, feature_width = WIDTH, FEATURES


def _mop(**table: Any) -> MOP:
    torch.manual_seed(0)
    return MOP(Table(classes=CLASSES, **table), WIDTH, FEATURES)


def _large(pairs: int = 4000) -> Batch:
    return make_objects(pairs, length=4, partners=False)


def _hidden(batch: Batch, view: Batch) -> torch.Tensor:
    """Returns bool [I, N]: objects whose feature is another than it was."""
    return (view.images[..., :FEATURES] != batch.images[..., :FEATURES]).any(-1)


def _counted(batch: Batch, targets: MOPTargets) -> torch.Tensor:
    """Returns bool [P, N]: the objects that count as targets."""
    places = torch.zeros(len(batch.pairs) * OBJECTS).index_add_(0, targets.positions, targets.weight)
    assert places.max() <= 1
    return places.bool().view(-1, OBJECTS)


def test_15_percent_of_the_objects_lose_their_feature_and_keep_their_box() -> None:
    batch = _large()
    view, targets = _mop().prepare(batch)
    hidden = _hidden(batch, view)
    assert torch.equal(hidden, _counted(batch, targets))
    assert not (hidden & ~batch.image_mask).any()
    assert abs(hidden.sum() / batch.image_mask.sum() - 0.15) < 0.01
    assert not view.images[hidden][:, :FEATURES].any()
    assert torch.equal(view.images[..., FEATURES:], batch.images[..., FEATURES:])
    assert float(targets.count) == hidden.sum() < len(targets.positions) < 0.2 * 4000 * OBJECTS


def test_lxmerts_corruption_is_80_percent_zeros_10_another_object_and_10_as_it_was() -> None:
    batch = _large()
    view, targets = _mop(corruption="lxmert").prepare(batch)
    counted = _counted(batch, targets)
    new, old = (one.images[counted][:, :FEATURES] for one in (view, batch))
    assert abs((new == 0).all(1).float().mean() - 0.8) < 0.02
    assert abs((new == old).all(1).float().mean() - 0.1 * (1 + 1 / OBJECTS)) < 0.02
    same_image = batch.images[counted.any(1)][:, :, :FEATURES].flatten(0, 1)
    other = new[(new != 0).any(1) & (new != old).any(1)]
    assert len(other) > 50 and all((same_image == feature).all(1).any() for feature in other)
    assert torch.equal(view.images[~counted], batch.images[~counted])


@pytest.mark.parametrize("on_mismatched", [False, True])
def test_mismatched_pairs_count_only_where_the_recipe_says(on_mismatched: bool) -> None:
    view, _ = ITM(ITMTable(), WIDTH).prepare(make_objects(200))
    _, targets = _mop(on_mismatched=on_mismatched).prepare(view)
    counted = _counted(view, targets)
    assert counted[view.mismatched].any() == on_mismatched
    assert counted[~view.mismatched].any()


def test_a_hole_does_not_tell_whether_the_pair_matches() -> None:
    batch = make_objects(4000, length=4)
    swapped, _ = ITM(ITMTable(), WIDTH).prepare(batch)
    hidden, there = _hidden(batch, _mop().prepare(swapped)[0]), batch.image_mask
    shares = [hidden[rows].sum() / there[rows].sum() for rows in (swapped.mismatched, ~swapped.mismatched)]
    assert abs(shares[0] - shares[1]) < 0.02


def test_the_same_keys_hide_the_same_objects_wherever_the_image_stands() -> None:
    batch = make_objects(8, partners=False)
    turned = replace(
        batch,
        **{
            name: getattr(batch, name).flip(0)
            for name in ("images", "image_mask", "image_keys", "object_labels", "object_confidences")
        },
    )
    mop = _mop(probability=0.5)
    assert torch.equal(mop.prepare(batch)[0].images, mop.prepare(turned)[0].images.flip(0))


@pytest.mark.parametrize("regression", ["smooth_l1", "mse"])
@pytest.mark.parametrize("predicted", ["masked", "all"])
def test_loss_agrees_with_a_loop_over_objects_and_never_reads_img(regression: str, predicted: str) -> None:
    batch = make_objects(12, captions=2, partners=False)
    mop = _mop(probability=0.5, regression=regression, predicted=predicted)
    view, targets = mop.prepare(batch)
    states = torch.randn(12, 1 + OBJECTS, WIDTH)
    found = mop.loss(FakePasses(image=states), targets)
    moved = states.clone()
    moved[:, 0] += 1
    assert torch.equal(found.sum, mop.loss(FakePasses(image=moved), targets).sum)
    hidden, total, masked = _hidden(batch, view), 0.0, 0
    for pair, image in enumerate(batch.pairs[:, 0].tolist()):
        for place in range(OBJECTS):
            state = mop.transform(states[pair, 1 + place])
            label = int(batch.object_labels[image, place])
            entropy = 0.0 if label < 0 else -float(mop.classes(state).log_softmax(0)[label].detach())
            if hidden[image, place]:
                masked += 1
                error = (mop.regression(state) - batch.images[image, place, :FEATURES].float()).abs().detach()
                small = error.square() / (2 if regression == "smooth_l1" else 1)
                large = error - 0.5 if regression == "smooth_l1" else error.square()
                total += float(torch.where(error < 1, small, large).mean())
                total += entropy if predicted == "masked" else 0.0
            if predicted == "all" and batch.image_mask[image, place]:
                total += entropy * float(batch.object_confidences[image, place])
    assert masked > 10
    assert float(found.sum.detach()) == pytest.approx(total, rel=1e-4)
    assert float(found.count) == masked


def test_the_constant_is_the_shares_of_the_classes_and_the_mean_feature() -> None:
    batch, mop = make_objects(40, partners=False), _mop(probability=0.5, regression="mse")
    view, targets = mop.prepare(batch)
    hidden = _hidden(batch, view)
    features, labels = batch.images[hidden][:, :FEATURES].double(), batch.object_labels[hidden]
    counts = labels[labels >= 0].bincount(minlength=CLASSES).double()
    entropy = -(counts * (counts / counts.sum()).log()).sum()
    expected = features.var(0, correction=0).mean() + entropy / len(labels)
    found = mop.constant_loss(mop.constant(targets))
    assert found["loss"] == pytest.approx(float(expected))
    assert found["accuracy"] == pytest.approx(float(counts.max() / counts.sum()))


@pytest.mark.parametrize(("scale", "exact"), [(0.1, True), (3.0, False)])
def test_by_smooth_l1_the_best_constant_is_at_most_what_is_told(scale: float, exact: bool) -> None:
    batch, mop = make_objects(40, partners=False), _mop(probability=0.5)
    batch = replace(batch, images=batch.images.clamp(-5, 5) * scale, object_labels=None)
    view, targets = mop.prepare(batch)
    features = batch.images[_hidden(batch, view)][:, :FEATURES].double()
    constants = torch.linspace(-5 * scale, 5 * scale, 2001)[:, None, None].double()
    best = F.smooth_l1_loss(*torch.broadcast_tensors(constants, features), reduction="none").mean(1).min(0)
    found = mop.constant_loss(mop.constant(targets))["loss"]
    if exact:
        assert found == pytest.approx(float(best.values.mean()), rel=1e-4)
    else:
        half_the_variance = float(features.var(0, correction=0).mean()) / 2
        assert float(best.values.mean()) < found < half_the_variance


def test_a_detector_with_more_classes_than_the_head_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"4 classes.*mop\.classes is 3"):
        MOP.from_recipe(Table(classes=3), None, Model(), make_facts())
    with pytest.raises(RecipeError, match="no classes"):
        MOP.from_recipe(Table(), None, Model(), replace(make_facts(), objects=None))
    assert MOP.from_recipe(Table(), None, Model(), make_facts()).classes.out_features == 1600
