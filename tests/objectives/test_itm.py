from dataclasses import replace

import torch

from dsvlp.objectives.itm import ITM
from dsvlp.recipe import ITM as ITMTable
from tests.batches import make_batch
from tests.objectives.fakes import FakePasses


def test_unmatched_pairs_get_their_partners_text_and_the_others_keep_theirs() -> None:
    batch = make_batch(pairs=12, captions=2)
    view, targets = ITM(ITMTable(), 8).prepare(batch)
    assert view.text_ids.shape[0] == 12
    for p in range(12):
        matched = bool(batch.matched[p])
        row = int(batch.pairs[p, 1] if matched else batch.partner[p])
        found = int(view.pairs[p, 1])
        assert torch.equal(view.text_ids[found], batch.text_ids[row])
        assert torch.equal(view.text_mask[found], batch.text_mask[row])
        assert torch.equal(view.special_mask[found], batch.special_mask[row])
        assert bool(view.mismatched[p]) is not matched
        assert int(targets.labels[p]) == int(matched)
    assert torch.equal(view.pairs[:, 0], batch.pairs[:, 0])


def test_loss_and_accuracy_agree_with_a_loop() -> None:
    torch.manual_seed(0)
    batch = replace(make_batch(pairs=6), weight=torch.tensor([1.0, 0, 1, 1, 0, 1]))
    itm, pooled = ITM(ITMTable(), 8), torch.randn(6, 8)
    _, targets = itm.prepare(batch)
    loss = itm.loss(FakePasses(pooled=pooled), targets)
    total, correct = 0.0, 0
    for p in range(6):
        if batch.weight[p] > 0:
            odds = itm.head(pooled[p]).softmax(0).detach()
            total -= float(odds[int(batch.matched[p])].log())
            correct += int(odds.argmax()) == int(batch.matched[p])
    assert abs(float(loss.sum.detach()) - total) < 1e-5
    assert float(loss.count) == 4
    assert [float(v) for v in loss.metrics["accuracy"]] == [correct, 4]


def test_score_is_the_log_odds_of_a_match() -> None:
    from dsvlp.types import Encoded

    itm, pooled = ITM(ITMTable(), 8), torch.randn(5, 8)
    odds = itm.head(pooled).softmax(1)
    expected = (odds[:, 1] / odds[:, 0]).log()
    assert torch.allclose(itm.score(Encoded(pooled=pooled)), expected, atol=1e-6)
