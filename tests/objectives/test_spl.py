from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from dsvlp.errors import RecipeError
from dsvlp.objectives.spl import SPL, label_costs, match_rows
from dsvlp.recipe import SPL as Table
from dsvlp.types import Batch, DataFacts, Loss
from tests.batches import make_batch
from tests.objectives.fakes import FakePasses

CLASSES = 4


def _spl(queries: int = 5, **table: Any) -> SPL:
    torch.manual_seed(0)
    return SPL(Table(**table), 16, queries, CLASSES)


def _loss(spl: SPL, batch: Batch, tokens: torch.Tensor) -> Loss:
    _, targets = spl.prepare(batch)
    passes = FakePasses(image=tokens)
    return spl.loss(passes, targets, spl.begin(passes, targets))


def _reference(spl: SPL, batch: Batch, tokens: torch.Tensor) -> tuple[float, float]:
    """Returns (summed loss, count) by one matching an image; the images' weights are 1."""
    total, count = 0.0, 0.0
    for i, labels in enumerate(batch.box_labels):
        labels = labels[labels >= 0].tolist()
        odds = spl.head(tokens[i]).softmax(-1).detach().numpy()
        queries, columns = linear_sum_assignment(-odds[:, labels])
        for q, k in zip(queries, columns, strict=True):
            total -= float(np.log(odds[q, labels[k]]))
            count += 1
        if spl.no_object is not None and labels:
            for q in set(range(spl.queries)) - set(queries):
                total -= 0.1 * float(np.log(odds[q, spl.no_object]))
                count += 0.1
    return total, count


@pytest.mark.parametrize("unmatched", ["ignore", "no_object"])
@pytest.mark.parametrize("queries", [3, 5, 9])
def test_loss_and_count_agree_with_a_loop_over_images(queries: int, unmatched: str) -> None:
    batch, spl = make_batch(seed=3), _spl(queries, unmatched=unmatched)
    tokens = torch.randn(8, queries, 16) * 9
    loss = _loss(spl, batch, tokens)
    total, count = _reference(spl, batch, tokens)
    assert abs(float(loss.sum.detach()) - total) < 1e-3
    assert abs(float(loss.count) - count) < 1e-4


@pytest.mark.parametrize("labels", [36, 20])
def test_the_batched_matching_costs_what_scipys_costs(labels: int) -> None:
    torch.manual_seed(1)
    logits, classes = torch.randn(6, 36, 50) * 3, torch.randint(0, 50, (6, 36))
    classes[:, labels:] = -1
    costs, valid = label_costs(logits, classes), classes >= 0
    ordinals, _ = match_rows(costs, valid, np.arange(6), None)
    for i in range(6):
        matrix = (-logits[i].softmax(-1))[:, classes[i, :labels]].numpy()
        expected = matrix[linear_sum_assignment(matrix)].sum()
        queries = np.flatnonzero(ordinals[i] >= 0)
        assert len(set(ordinals[i, queries])) == len(queries) == labels
        found = sum(float(costs[i, q, ordinals[i, q]]) for q in queries)
        assert abs(found - expected) < 1e-4


def test_matching_seconds_and_the_wait_for_it_are_counted() -> None:
    spl = _spl()
    _loss(spl, make_batch(), torch.randn(8, 5, 16))
    assert spl.seconds["matching"] > 0
    assert spl.seconds["waiting"] >= 0


def test_images_of_weight_zero_do_not_count() -> None:
    batch = make_batch(pairs=6)
    spl, tokens = _spl(), torch.randn(6, 5, 16)
    one = _loss(spl, replace(batch, weight=torch.tensor([0.0, 0, 0, 1, 0, 0])), tokens)
    labels = batch.box_labels.clone()
    labels[torch.arange(6) != 3] = -1
    other = _loss(spl, replace(batch, box_labels=labels), tokens)
    assert torch.equal(one.sum, other.sum)
    assert torch.equal(one.count, other.count)


@pytest.mark.parametrize("unmatched", ["ignore", "no_object"])
@pytest.mark.parametrize("present", [False, True])
def test_images_without_labels_give_exactly_zero_with_the_graph_kept(present: bool, unmatched: str) -> None:
    batch = replace(make_batch(), box_labels=torch.full((8, 6), -1) if present else None)
    spl = _spl(unmatched=unmatched)
    loss = _loss(spl, batch, torch.randn(8, 5, 16))
    loss.sum.backward()
    assert float(loss.sum.detach()) == float(loss.count) == 0
    assert spl.head.weight.grad.abs().max() == 0


def test_a_diverged_step_neither_raises_nor_hangs() -> None:
    loss = _loss(_spl(), make_batch(), torch.full((8, 5, 16), torch.nan))
    assert loss.count > 0


@pytest.mark.parametrize("unmatched", ["ignore", "no_object"])
def test_the_best_constant_is_what_a_head_without_input_reaches(unmatched: str) -> None:
    batch, spl = make_batch(seed=4), _spl(6, unmatched=unmatched)
    _, targets = spl.prepare(batch)
    statistics = spl.constant(targets)
    assert abs(float(statistics.sum()) - float(targets.count)) < 1e-4
    with torch.no_grad():
        spl.head.weight.zero_()
        spl.head.bias.copy_((statistics / statistics.sum()).clamp(min=1e-20).log())
    loss = _loss(spl, batch, torch.randn(8, 6, 16))
    assert abs(float(loss.sum / loss.count) - spl.constant_loss(statistics)["loss"]) < 1e-4


def test_data_without_boxes_is_refused() -> None:
    with pytest.raises(RecipeError, match="no labelled boxes"):
        SPL.from_recipe(Table(), None, None, DataFacts(40, 0, 1, 2, 3))
