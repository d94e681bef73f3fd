from dataclasses import replace

import pytest
import torch

from dsvlp.errors import RecipeError
from dsvlp.objectives.itm import ITM
from dsvlp.objectives.qa import QA
from dsvlp.recipe import ITM as ITMTable
from dsvlp.recipe import QA as Table
from tests.batches import ANSWERS, make_facts, make_objects
from tests.objectives.fakes import FakePasses


class Model:
    """What the objective must know of a model."""

    pooled_width = 8


def _qa() -> QA:
    torch.manual_seed(0)
    return QA.from_recipe(Table(), None, Model(), make_facts())


def test_captions_pruned_answers_mismatches_and_padding_do_not_count() -> None:
    batch = replace(make_objects(40), weight=(torch.arange(40) < 36).float())
    view, _ = ITM(ITMTable(), 8).prepare(batch)
    _, targets = _qa().prepare(view)
    expected = (batch.labels >= 0) & batch.matched & (batch.weight > 0)
    assert torch.equal(targets.weight.bool(), expected)
    assert float(targets.count) == expected.sum() > 0
    assert (batch.labels[~expected] >= 0).any()


def test_loss_agrees_with_a_loop_over_answered_questions() -> None:
    batch, qa, pooled = make_objects(8, partners=False), _qa(), torch.randn(8, 8)
    _, targets = qa.prepare(batch)
    loss = qa.loss(FakePasses(pooled=pooled), targets)
    known = [pair for pair in range(8) if batch.labels[pair] >= 0]
    logits = [qa.head(pooled[pair]).detach() for pair in known]
    labels = [int(batch.labels[pair]) for pair in known]
    total = -sum(float(row.log_softmax(0)[label]) for row, label in zip(logits, labels, strict=True))
    correct = sum(int(row.argmax()) == label for row, label in zip(logits, labels, strict=True))
    assert float(loss.sum.detach()) == pytest.approx(total, rel=1e-5)
    assert [float(value) for value in loss.metrics["accuracy"]] == [correct, len(known)]


def test_without_questions_nothing_counts() -> None:
    _, targets = _qa().prepare(replace(make_objects(8), labels=None))
    assert float(targets.count) == 0 and not targets.weight.any()


def test_there_is_a_class_for_each_answer_of_the_data() -> None:
    assert _qa().head[-1].out_features == len(ANSWERS.names)
    with pytest.raises(RecipeError, match="no answers"):
        QA.from_recipe(Table(), None, Model(), replace(make_facts(), answers=None))
