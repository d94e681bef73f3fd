from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dsvlp.objectives import hard_negatives
from dsvlp.objectives.hard_negatives import FLOOR, draw
from dsvlp.objectives.itm import ITM
from dsvlp.passes import Fused, Similarity
from dsvlp.recipe import ITM as Table
from dsvlp.types import Batch, Encoded
from tests.batches import make_batch


class Similar:
    """Passes whose similarity is given; a fused pair's feature tells its image and its text."""

    def __init__(self, batch: Batch, similarity: Similarity) -> None:
        self.batch, self.similarity = batch, similarity
        self.asked: list[Tensor] = []

    def fused(self, view: str) -> Encoded:
        return Encoded(pooled=self.batch.pairs.float())

    def ask(self, view: str, pairs: Tensor | None = None, *, gathered: bool = False) -> Fused:
        fused = Fused(lambda: None)
        fused.settle(Encoded(pooled=(self.batch.pairs if pairs is None else pairs).float()))
        if pairs is not None:
            self.asked.append(pairs)
        return fused


def similarity(pairs: int, seed: int = 0) -> Similarity:
    forth, back = torch.randn(2, pairs, pairs, generator=torch.Generator().manual_seed(seed)) * 2
    return Similarity(forth, back, 0)


def weighted(**batch: Any) -> Batch:
    return replace(make_batch(**batch), weight=torch.tensor([1.0, 1, 1, 0, 1, 1, 1, 1]))


def drawn_pairs(batch: Batch, found: Similarity) -> Tensor:
    passes = Similar(batch, found)
    hard_negatives.ask(passes, "clean", "batch", hard_negatives.candidates(batch, "batch"))
    return passes.asked[0]


def test_draws_follow_the_softmax_of_the_similarities() -> None:
    rows, columns = 20_000, 7
    logits = torch.tensor([[2.0, 0.5, 1.0, -1.0, 0.0, -torch.inf, 3.0]]).expand(rows, -1)
    allowed = torch.tensor([[True, True, True, True, True, True, False]]).expand(rows, -1)
    keys = torch.randint(2**62, (rows,), generator=torch.Generator().manual_seed(0))
    found, odds = draw(logits, allowed, keys, torch.arange(columns), "test")
    weight = ((logits.softmax(1) + FLOOR) * allowed)[0].numpy()
    expected = weight / weight.sum() * rows
    counts = np.bincount(found.numpy(), minlength=columns)
    assert counts[6] == 0 and counts[5] < 3  # not allowed; only the floor
    assert stats.chisquare(counts[:5], expected[:5] * counts[:5].sum() / expected[:5].sum()).pvalue > 0.001
    assert torch.equal(odds, logits.softmax(1).gather(1, found[:, None])[:, 0])


def test_draws_of_different_rows_and_purposes_are_independent() -> None:
    logits, allowed = torch.zeros(4000, 4), torch.ones(4000, 4, dtype=torch.bool)
    keys = torch.randint(2**62, (4000,), generator=torch.Generator().manual_seed(1))
    one, _ = draw(logits, allowed, keys, torch.arange(4), "itm.negative_text")
    other, _ = draw(logits, allowed, keys, torch.arange(4), "itm.negative_image")
    table = np.zeros((4, 4))
    np.add.at(table, (one.numpy(), other.numpy()), 1)
    assert stats.chi2_contingency(table).pvalue > 0.001
    successive = np.zeros((4, 4))
    np.add.at(successive, (one[:-1].numpy(), one[1:].numpy()), 1)
    assert stats.chi2_contingency(successive).pvalue > 0.001


def test_an_overwhelming_own_pair_leaves_the_others_equally_likely() -> None:
    logits = torch.zeros(9000, 4)
    logits[:, 0] = 80.0  # what a converged ITC gives the own pair
    allowed = torch.tensor([[False, True, True, True]]).expand(9000, -1)
    keys = torch.randint(2**62, (9000,), generator=torch.Generator().manual_seed(2))
    found, _ = draw(logits, allowed, keys, torch.arange(4), "test")
    assert stats.chisquare(np.bincount(found.numpy(), minlength=4)[1:]).pvalue > 0.001


def test_neither_the_own_image_nor_a_pair_of_weight_zero_is_ever_drawn() -> None:
    for seed in range(60):
        batch = weighted(pairs=8, captions=2, partners=False, seed=seed)
        found = similarity(8, seed)
        found.image_to_text.diagonal().add_(20)
        image, text = drawn_pairs(batch, found).unbind(1)
        assert (image[:8] == batch.pairs[:, 0]).all() and (text[8:] == batch.pairs[:, 1]).all()
        assert (text[:8] // 2 != batch.pairs[:, 0]).all()  # text t belongs to image t // 2
        assert (image[8:] != batch.pairs[:, 0]).all()
        assert (text[:8] != 3).all()


def test_one_image_under_two_rows_of_the_batch_is_one_image() -> None:
    batch = make_batch(pairs=4, partners=False)
    batch = replace(batch, rows=torch.tensor([7, 7, 8, 7]))
    image, text = drawn_pairs(batch, similarity(4)).unbind(1)
    assert [int(image[4 + k]) for k in (0, 1, 3)] == [2, 2, 2] and [int(text[k]) for k in (0, 1, 3)] == [
        2,
        2,
        2,
    ]


def test_the_order_of_the_pairs_changes_no_draw() -> None:
    batch, found = make_batch(pairs=8, partners=False), similarity(8)
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    mixed = replace(batch, pairs=batch.pairs[order], pair_keys=batch.pair_keys[order])
    moved = Similarity(*(m[order][:, order] for m in (found.image_to_text, found.text_to_image)), 0)
    expected = drawn_pairs(batch, found).view(2, 8, 2)[:, order]
    assert torch.equal(drawn_pairs(mixed, moved).view(2, 8, 2), expected)


def test_own_candidates_are_found_among_the_columns_of_all_ranks() -> None:
    batch, whole = make_batch(pairs=4, partners=False), similarity(12)
    own = Similarity(whole.image_to_text[4:8, 4:8], whole.text_to_image[4:8, 4:8], 0)
    rank_1 = Similarity(whole.image_to_text[4:8], whole.text_to_image[4:8], 4)
    assert torch.equal(drawn_pairs(batch, own), drawn_pairs(batch, rank_1))


def test_itm_judges_own_pairs_then_images_with_other_texts_then_texts_with_other_images() -> None:
    torch.manual_seed(0)
    batch = weighted(pairs=8, captions=2, partners=False)
    same, mask = batch.text_ids.clone(), batch.text_mask.clone()
    same[6], mask[6] = same[0], mask[0]  # a caption of image 3 reads as one of image 0
    batch = replace(batch, text_ids=same, text_mask=mask)
    texts, images = [6, 4, 7, 0, 0, 1, 0, 2], [4, 5, 6, 7, 1, 0, 0, 1]
    found = similarity(8)
    for p in range(8):  # so much likelier than all others that the draw is certain
        found.image_to_text[p, texts[p]] += 40
        found.text_to_image[p, images[p]] += 40
    itm, passes = ITM(Table(view="clean", negatives="batch"), 2), Similar(batch, found)
    view, targets = itm.prepare(batch)
    assert view is batch
    loss = itm.loss(passes, targets, itm.begin(passes, targets))
    judged = [(k // 2, k, 1) for k in range(8)]
    judged += [(p // 2, k, 0) for p, k in enumerate(texts)] + [(k // 2, p, 0) for p, k in enumerate(images)]
    total = 0.0
    for b, (image, text, label) in enumerate(judged):
        odds = itm.head(torch.tensor([float(image), float(text)])).softmax(0).detach()
        total -= float(odds[label].log() * batch.weight[b % 8])
    assert float(loss.sum.detach()) == pytest.approx(total, rel=1e-5)
    assert float(loss.count) == 3 * 7 and targets.labels.tolist() == [label for _, _, label in judged]
    assert loss.drawn is not None and loss.drawn.tolist() == [[i, t] for i, t, _ in judged[8:]]
    hardness = [float(v) for v in loss.metrics["hardness"]]
    assert hardness == pytest.approx([14, 14], rel=1e-3)
    # 0 -> 6 by its image, 6 -> 0 both ways
    assert [float(v) for v in loss.metrics["false_negatives"]] == [3, 14]


def test_a_pair_without_a_negative_is_judged_alone() -> None:
    batch = make_batch(pairs=4, captions=4, partners=False)
    itm = ITM(Table(view="clean", negatives="batch"), 2)
    _, targets = itm.prepare(batch)
    assert targets.weight.tolist() == [1.0] * 4 + [0.0] * 8
    assert float(targets.count) == 4
    passes = Similar(batch, similarity(4))
    loss = itm.loss(passes, targets, itm.begin(passes, targets))
    assert bool(loss.sum.isfinite()) and float(loss.metrics["hardness"][1]) == 0
