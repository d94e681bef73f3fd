from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dsvlp.objectives.itm import ITM
from dsvlp.objectives.mlm import MLM
from dsvlp.recipe import ITM as ITMTable
from dsvlp.recipe import MLM as Table
from dsvlp.types import Batch
from tests.batches import CLS, FIRST_WORD, MASK, PAD, SEP, make_batch, make_facts
from tests.objectives.fakes import FakePasses

VOCABULARY = 40


def _mlm(vocabulary: int = VOCABULARY, **table: Any) -> MLM:
    torch.manual_seed(0)
    return MLM(Table(**table), nn.Embedding(60, 16), make_facts(vocabulary))


def _large() -> Batch:
    return make_batch(pairs=4000, length=20, image_size=1, partners=False)


def _masked(mlm: MLM, batch: Batch) -> torch.Tensor:
    """Returns bool [P, L]: the positions that count as targets."""
    _, targets = mlm.prepare(batch)
    size = len(batch.pairs) * batch.text_ids.shape[1]
    mask = torch.zeros(size).index_add_(0, targets.positions, targets.weight)
    assert mask.max() <= 1
    return mask.bool().view(len(batch.pairs), -1)


def test_15_percent_of_the_words_are_masked_80_10_10() -> None:
    batch = _large()
    mlm = _mlm()
    masked, words = _masked(mlm, batch), ~batch.special_mask
    assert not (masked & ~words).any()
    assert abs(masked.sum() / words.sum() - 0.15) < 0.01
    new, old = mlm.prepare(batch)[0].text_ids[masked], batch.text_ids[masked]
    assert abs((new == MASK).float().mean() - 0.8) < 0.02
    # One random token in 40 is [MASK], one is the word itself.
    assert abs((new == old).float().mean() - 0.1 * (1 + 1 / VOCABULARY)) < 0.02
    random = new[(new != MASK) & (new != old)]
    assert random.unique().numel() > 0.8 * VOCABULARY
    assert int(random.max()) < VOCABULARY
    assert torch.equal(mlm.prepare(batch)[0].text_ids[~masked], batch.text_ids[~masked])


def test_other_may_be_zero() -> None:
    batch = _large()
    mlm = _mlm(other="zero")
    masked = _masked(mlm, batch)
    new, old = mlm.prepare(batch)[0].text_ids[masked], batch.text_ids[masked]
    assert abs((new == 0).float().mean() - 0.1) < 0.02
    assert ((new == 0) | (new == MASK) | (new == old)).all()


def test_special_tokens_are_never_masked() -> None:
    batch = make_batch(pairs=64, partners=False)
    view, _ = _mlm(probability=0.99).prepare(batch)
    for special in (PAD, CLS, SEP):
        there = batch.text_ids == special
        assert (view.text_ids[there] == special).all()
    assert (view.text_ids[batch.text_ids >= FIRST_WORD] == MASK).float().mean() > 0.7


@pytest.mark.parametrize("on_mismatched", [False, True])
def test_mismatched_pairs_count_only_where_the_recipe_says(on_mismatched: bool) -> None:
    batch = make_batch(pairs=40)
    view, _ = ITM(ITMTable(), 8).prepare(batch)
    masked = _masked(_mlm(probability=0.9, on_mismatched=on_mismatched), view)
    assert masked[view.mismatched].any() == on_mismatched
    assert masked[~view.mismatched].any()


def test_a_mask_does_not_tell_whether_the_pair_matches() -> None:
    swapped, _ = ITM(ITMTable(), 8).prepare(make_batch(pairs=2000, length=20, image_size=1))
    view, _ = _mlm().prepare(swapped)
    words = ~swapped.special_mask
    shares = [
        ((view.text_ids == MASK) & words)[rows].sum() / words[rows].sum()
        for rows in (view.mismatched, ~view.mismatched)
    ]
    assert abs(shares[0] - shares[1]) < 0.02


def test_without_itm_on_its_view_every_pair_is_a_true_one() -> None:
    batch = make_batch(pairs=40)
    assert _masked(_mlm(probability=0.9), batch)[~batch.matched].any()


def test_pairs_of_weight_zero_never_count() -> None:
    batch = replace(make_batch(pairs=8, partners=False), weight=torch.tensor([1.0, 0] * 4))
    masked = _masked(_mlm(probability=0.9), batch)
    assert not masked[1::2].any()
    assert masked[::2].any()


def test_loss_agrees_with_a_loop_over_masked_words() -> None:
    batch = make_batch(pairs=6, partners=False)
    mlm = _mlm(probability=0.4)
    view, targets = mlm.prepare(batch)
    text = torch.randn(6, 10, 16)
    loss = mlm.loss(FakePasses(text=text), targets)
    masked, total, correct = _masked(mlm, batch), 0.0, 0
    for p in range(6):
        for word in range(10):
            if masked[p, word]:
                logits = mlm.transform(text[p, word]) @ mlm.decoder.weight.T + mlm.decoder.bias
                total -= float(logits.log_softmax(0)[batch.text_ids[p, word]].detach())
                correct += int(logits.argmax()) == int(batch.text_ids[p, word])
    assert int(masked.sum()) > 5
    assert abs(float(loss.sum.detach()) - total) < 1e-3
    assert float(loss.count) == int(masked.sum())
    assert [float(v) for v in loss.metrics["accuracy"]] == [correct, int(masked.sum())]
    assert torch.equal(view.text_mask, batch.text_mask)


def test_logits_are_computed_at_the_capacity_only_and_it_is_never_full() -> None:
    batch = _large()
    mlm = _mlm()
    _, targets = mlm.prepare(batch)
    assert len(targets.positions) == mlm.capacity(80_000) < 0.17 * 80_000
    assert float(targets.count) < len(targets.positions)


def test_a_full_capacity_leaves_the_rest_uncounted() -> None:
    class Small(MLM):
        def capacity(self, positions: int) -> int:
            return 7

    mlm = Small(Table(probability=0.9), nn.Embedding(60, 16), make_facts())
    _, targets = mlm.prepare(make_batch(pairs=8, partners=False))
    assert float(targets.count) == targets.weight.sum() == 7
    assert len(mlm.loss(FakePasses(text=torch.randn(8, 10, 16)), targets).predictions) == 7


def test_the_same_keys_mask_the_same_words_wherever_the_pair_stands() -> None:
    batch = make_batch(pairs=8, partners=False)
    flipped = replace(
        batch,
        text_ids=batch.text_ids.flip(0),
        text_mask=batch.text_mask.flip(0),
        special_mask=batch.special_mask.flip(0),
        pair_keys=batch.pair_keys.flip(0),
    )
    mlm = _mlm(probability=0.4)
    assert torch.equal(mlm.prepare(batch)[0].text_ids, mlm.prepare(flipped)[0].text_ids.flip(0))


def test_a_decoder_of_its_own_starts_as_a_new_layer_and_a_tied_one_is_the_word_table() -> None:
    own, tied = _mlm(tied=False), _mlm()
    words = nn.Embedding(60, 16)
    assert MLM(Table(), words, make_facts()).decoder.weight is words.weight
    assert MLM(Table(tied=False), words, make_facts()).decoder.weight is not words.weight
    names = {"transform.0.weight", "transform.0.bias", "transform.2.weight", "transform.2.bias"}
    for mlm in (own, tied):
        found = {name for name, _ in mlm.named_parameters()}
        assert found == names | {"decoder.weight", "decoder.bias"}
    expected = 0.02 * (768 / 16) ** 0.5
    assert float(own.decoder.weight.std()) == pytest.approx(expected, rel=0.1)
    assert not own.decoder.bias.any() and own.decoder.weight.shape == (60, 16)
