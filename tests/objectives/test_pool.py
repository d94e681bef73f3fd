"""Negatives from ITC's queue: what is drawn for the next step, and how it draws from that."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dsvlp.objectives import hard_negatives
from dsvlp.objectives.itm import ITM
from dsvlp.objectives.pool import EMPTY, Pool
from dsvlp.objectives.queue import NOISE
from dsvlp.passes import Past, Similarity
from dsvlp.recipe import ITM as Table
from dsvlp.recipe import BatchSize
from dsvlp.types import Batch
from tests.batches import make_batch, make_fetched
from tests.objectives.test_hard_negatives import Similar, similarity

PAIRS, WIDTH, PLACES = 8, 6, 16


def unit(*shape: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


def past(seed: int = 0) -> Past:
    """A queue of 16 places: two empty, two of noise, the others of the images 0 to 11."""
    rows = torch.cat((torch.tensor([EMPTY, EMPTY, NOISE, NOISE]), torch.arange(12)))
    samples = torch.where(rows < 0, -1, rows + 100)
    features = unit(4, PLACES, WIDTH, seed=seed)
    own = features[2:, :PAIRS]
    logits = [own[0] @ features[1].T / 0.1, own[1] @ features[0].T / 0.1]
    return Past(*logits, rows, samples, *features[:2], *own, torch.tensor(0.1))


def drawn(batch: Batch, found: Past) -> Tensor:
    pool = Pool(PAIRS, WIDTH)
    hard_negatives.draw_for_next(found, hard_negatives.candidates(batch, "queue"), pool)
    (samples,) = pool.drawn
    pool.settle()
    assert torch.equal(pool.samples, samples)
    for kept, features in ((pool.image, found.image), (pool.text, found.text)):
        part = 0 if kept is pool.image else 1
        for place, sample in enumerate(samples[:, part].tolist()):
            if sample != EMPTY:
                assert torch.equal(kept[place], features[sample - 100 + 4])
    return samples


def test_neither_the_own_image_nor_an_empty_place_nor_noise_is_drawn_for_the_next_step() -> None:
    seen = set()
    for seed in range(40):
        batch = make_batch(PAIRS, partners=False, seed=seed)
        samples = drawn(batch, past(seed))
        assert ((samples >= 100) & (samples < 112)).all()
        assert (samples - 100 != batch.rows[:, None]).all()
        seen |= set(samples.flatten().tolist())
    assert len(seen) == 12


def test_the_likeliest_are_drawn_for_the_next_step() -> None:
    found, batch = past(), make_batch(PAIRS, partners=False)
    for pair in range(PAIRS):  # so much likelier than all others that the draw is certain
        found.text_to_image[pair, 4 + (pair + 1) % 12] += 60
        found.image_to_text[pair, 4 + (pair + 3) % 12] += 60
    expected = [[100 + (pair + 1) % 12, 100 + (pair + 3) % 12] for pair in range(PAIRS)]
    assert drawn(batch, found).tolist() == expected


@pytest.mark.parametrize("rows", [torch.full((PLACES,), EMPTY), torch.full((PLACES,), NOISE)])
def test_a_queue_without_pairs_leaves_every_place_empty(rows: Tensor) -> None:
    found = replace(past(), rows=rows, samples=torch.full((PLACES,), -1))
    for logits in (found.image_to_text, found.text_to_image):
        logits.fill_(-torch.inf)
    assert (drawn(make_batch(PAIRS, partners=False), found) == EMPTY).all()


def test_what_is_not_finite_leaves_a_place_empty() -> None:
    found = past()
    found.image[5] = torch.nan
    found.text_to_image[:, 5] += 60
    pool = Pool(PAIRS, WIDTH)
    batch = make_batch(PAIRS, partners=False)
    hard_negatives.draw_for_next(found, hard_negatives.candidates(batch, "queue"), pool)
    pool.settle()
    assert (pool.samples == EMPTY).all(1).sum() == PAIRS - 1  # the pair of that image drew another
    assert pool.image.isfinite().all() and pool.text.isfinite().all()


def test_logits_that_are_not_finite_draw_what_is_allowed_or_nothing() -> None:
    found, batch = past(), make_batch(PAIRS, partners=False)
    found.image_to_text[2:4], found.text_to_image[:] = torch.nan, torch.inf
    samples = drawn(batch, found)
    allowed = (samples >= 100) & (samples - 100 != batch.rows[:, None])
    assert (allowed | (samples == EMPTY)).all()


def test_the_cut_of_a_batch_does_not_change_the_pool() -> None:
    samples, image, text = torch.arange(24).view(12, 2), unit(12, WIDTH), unit(12, WIDTH, seed=1)
    pools = []
    for size in (12, 4, 2):
        pool = Pool(12, WIDTH)
        for begin in range(0, 12, size):
            part = slice(begin, begin + size)
            pool.remember(samples[part], image[part], text[part])
        pool.settle()
        pool.settle()  # a step without a draw changes nothing
        pools.append(dict(pool.named_buffers()))
    for name, expected in (("samples", samples), ("image", image), ("text", text)):
        assert all(torch.equal(pool[name], expected) for pool in pools)


class Case:
    """A batch of 8 pairs with 6 fetched places of a pool of 9, one of them empty, one of an own image."""

    def __init__(self, captions: int = 1, seed: int = 0) -> None:
        fetched = replace(make_fetched(6, seed=seed), places=torch.tensor([3, 4, 5, 6, 7, 8]))
        rows = torch.tensor([[50, 60], [51, 61], [-1, 62], [0, 63], [54, -1], [55, 1]])
        self.fetched = replace(fetched, rows=rows)
        self.batch = replace(make_batch(PAIRS, captions, partners=False, seed=seed), fetched=self.fetched)
        self.itm = ITM(Table(view="clean", negatives="queue"), 2, WIDTH)
        self.itm.told(BatchSize(global_pairs=9, micro_pairs=9))
        pool = self.itm.pool
        assert pool is not None
        self.pool = pool
        pool.remember(torch.zeros(9, 2), unit(9, WIDTH, seed=2), unit(9, WIDTH, seed=3))
        pool.settle()
        self.similarity = replace(similarity(PAIRS, seed), past=past(seed))

    def draw(self) -> tuple[Tensor, hard_negatives.Drawn]:
        passes = Similar(self.batch, self.similarity)
        among = hard_negatives.candidates(self.batch, "queue")
        found = hard_negatives.ask(passes, "clean", "queue", among, self.pool)  # type: ignore[arg-type]
        return passes.asked[0], found


def test_negatives_come_from_the_batch_and_from_what_was_fetched() -> None:
    images, texts = set(), set()
    for seed in range(60):
        case = Case(seed=seed)
        case.similarity.image_to_text.diagonal().add_(20)
        pairs, found = case.draw()
        image, text = pairs.unbind(1)
        own = torch.arange(PAIRS)
        assert torch.equal(image[:PAIRS], own) and torch.equal(text[PAIRS:], own)
        assert (text[:PAIRS] != own).all() and (image[PAIRS:] != own).all()
        assert image[PAIRS] != PAIRS + 3 and text[1] != PAIRS + 5  # fetched, but the own image's
        assert torch.equal(found.fetched, torch.cat((text[:PAIRS], image[PAIRS:])) >= PAIRS)
        images |= set(image[PAIRS:].tolist())
        texts |= set(text[:PAIRS].tolist())
    assert images == set(range(PAIRS + 6)) - {PAIRS + 2}
    assert texts == set(range(PAIRS + 6)) - {PAIRS + 4}


def test_hardness_is_the_softmax_over_the_batch_and_what_was_fetched() -> None:
    case = Case()
    pairs, found = case.draw()
    seen = case.similarity.past
    assert seen is not None
    for pair in range(PAIRS):
        for part, drawn_row in ((1, int(pairs[pair, 1])), (0, int(pairs[PAIRS + pair, 0]))):
            batch = (case.similarity.text_to_image, case.similarity.image_to_text)[part]
            others, own = ((case.pool.image, seen.own_text), (case.pool.text, seen.own_image))[part]
            logits = batch[pair].tolist()
            for place, row in zip(
                case.fetched.places.tolist(), case.fetched.rows[:, part].tolist(), strict=True
            ):
                allowed = row >= 0 and row != pair
                logits.append(float(own[pair] @ others[place]) / 0.1 if allowed else -torch.inf)
            expected = torch.tensor(logits).softmax(0)[drawn_row]
            at = pair if part == 1 else PAIRS + pair
            assert float(found.hardness[at]) == pytest.approx(float(expected), rel=1e-5)


def test_an_equal_caption_among_the_fetched_is_a_false_negative() -> None:
    case = Case()
    ids, mask = case.fetched.text_ids.clone(), case.fetched.text_mask.clone()
    ids[0], mask[0] = case.batch.text_ids[2], case.batch.text_mask[2]  # a text that reads as pair 2's
    captions, caption_mask = case.fetched.caption_ids.clone(), case.fetched.caption_mask.clone()
    captions[1], caption_mask[1] = case.batch.text_ids[3], case.batch.text_mask[3]
    case.batch = replace(
        case.batch,
        fetched=replace(
            case.fetched, text_ids=ids, text_mask=mask, caption_ids=captions, caption_mask=caption_mask
        ),
    )
    seen = case.similarity.past
    assert seen is not None
    seen.own_image[2] = 60 * case.pool.text[3]  # place 0 of the fetched; the draw is certain
    seen.own_text[3] = 60 * case.pool.image[4]
    pairs, found = case.draw()
    assert int(pairs[2, 1]) == PAIRS and int(pairs[PAIRS + 3, 0]) == PAIRS + 1
    assert bool(found.false[2]) and bool(found.false[PAIRS + 3]) and int(found.false.sum()) == 2


def test_a_batch_of_one_image_is_judged_by_what_was_fetched_and_alone_without() -> None:
    case = Case(captions=PAIRS)
    _, targets = case.itm.prepare(case.batch)
    assert targets.weight.tolist() == [1.0] * 3 * PAIRS
    passes = Similar(case.batch, case.similarity)
    loss = case.itm.loss(passes, targets, case.itm.begin(passes, targets))  # type: ignore[arg-type]
    assert [float(v) for v in loss.metrics["from_queue"]] == [2 * PAIRS, 2 * PAIRS]
    for alone in (
        replace(case.batch, fetched=None),
        replace(case.batch, fetched=replace(case.fetched, rows=torch.full((6, 2), -1))),
    ):
        _, targets = case.itm.prepare(alone)
        assert targets.weight.tolist() == [1.0] * PAIRS + [0.0] * 2 * PAIRS
        passes = Similar(alone, case.similarity)
        loss = case.itm.loss(passes, targets, case.itm.begin(passes, targets))  # type: ignore[arg-type]
        assert bool(loss.sum.isfinite())


def test_without_a_gradient_nothing_is_drawn_for_the_next_step() -> None:
    case = Case()
    _, targets = case.itm.prepare(case.batch)
    passes = Similar(case.batch, case.similarity)
    with torch.no_grad():
        case.itm.begin(passes, targets)  # type: ignore[arg-type]
    assert case.pool.drawn == []
    case.itm.begin(passes, targets)  # type: ignore[arg-type]
    assert len(case.pool.drawn) == 1 and case.pool.drawn[0].shape == (PAIRS, 2)


def test_without_a_queue_to_look_at_negatives_come_from_the_batch() -> None:
    case = Case()
    held_out, bare = replace(case.batch, fetched=None), Similarity(*similarity_tensors(case.similarity))
    _, targets = case.itm.prepare(held_out)
    passes = Similar(held_out, bare)
    begun = case.itm.begin(passes, targets)  # type: ignore[arg-type]
    assert begun is not None and (begun.pairs < PAIRS).all() and not case.pool.drawn


def similarity_tensors(found: Similarity) -> tuple[Tensor, Tensor, int]:
    return found.image_to_text, found.text_to_image, found.first
