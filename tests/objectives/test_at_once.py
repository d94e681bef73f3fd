"""Negatives of the queue without delay: the draw against the official formula, and what is judged."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dsvlp import config, recipe, seed
from dsvlp.errors import RecipeError
from dsvlp.objectives import at_once, hard_negatives
from dsvlp.objectives.hard_negatives import FLOOR, Drawn
from dsvlp.objectives.itm import ITM
from dsvlp.passes import Past, Similarity
from dsvlp.recipe import ITM as Table
from dsvlp.recipe import BatchSize, micro_pairs
from dsvlp.types import Batch, Fetched
from tests.batches import make_batch, make_fetched, make_fiber_recipe
from tests.objectives.test_hard_negatives import Similar, similarity
from tests.objectives.test_pool import PAIRS, PLACES, past

EMPTY_PLACES, FIRST = 4, 100  # the queue's first places hold no pair; sample 100 + n shows image n
AT_ONCE = ("objectives.itm.negatives=queue", "objectives.itm.negatives_delay=0")


class Bringing(Similar):
    """Passes with a queue, which bring what is asked for: image n is all n, and so are the ids of text n."""

    def __init__(self, batch: Batch, found: Similarity, bad: int = -1) -> None:
        super().__init__(batch, found)
        self.bad, self.samples = bad, torch.empty(0)

    def view(self, name: str) -> Batch:
        return self.batch

    def fetch(self, view: str, samples: Tensor) -> Fetched:
        self.samples = samples
        made = make_fetched(len(samples))
        rows = torch.where(samples >= 0, samples - FIRST, -1)
        rows[:, 0].masked_fill_(samples[:, 0] == self.bad, -1)
        return replace(made, samples=samples, rows=rows)


def drawn(batch: Batch, found: Similarity, same_image: bool = False, bad: int = -1) -> tuple[Drawn, Bringing]:
    passes = Bringing(batch, found, bad)
    among = hard_negatives.candidates(batch, "queue", same_image)
    return at_once.ask(passes, "clean", among), passes  # type: ignore[arg-type]


def seen(number: int = 0) -> Similarity:
    return replace(similarity(PAIRS, number), past=past(number))


def official(batch: Batch, found: Similarity, pair: int, to_text: bool, same_image: bool) -> np.ndarray:
    """The official weights of one pair's draw: the softmax over batch and filled queue, the own index (and
    what may not be drawn) zeroed, 1e-9 added elsewhere."""
    queue = found.past
    assert queue is not None and batch.rows is not None
    side = (
        (found.image_to_text, queue.image_to_text) if to_text else (found.text_to_image, queue.text_to_image)
    )
    logits = torch.cat([each[pair] for each in side]).double().numpy()
    rows = [int(batch.rows[int(i)]) for i in batch.pairs[:, 0]] + queue.rows.tolist()
    filled = np.array([row >= 0 for row in rows])
    odds = np.where(filled, np.exp(logits - logits[filled].max()), 0)
    odds /= odds.sum()
    for place, row in enumerate(rows):
        own = place == pair or (row == rows[pair] and not same_image)
        odds[place] = 0 if own or row < 0 else odds[place] + FLOOR
    return odds


@pytest.mark.parametrize("same_image", [False, True])
def test_every_draw_is_that_of_a_loop_over_batch_and_queue(same_image: bool) -> None:
    of_queue, of_batch, of_own_image = 0, 0, 0
    for number in range(20):
        batch = make_batch(PAIRS, captions=2, partners=False, seed=number)
        found, passes = drawn(batch, seen(number), same_image)
        pairs = found.pairs.view(2, PAIRS, 2)
        for pair in range(PAIRS):
            for part, purpose in ((1, "itm.negative_text"), (0, "itm.negative_image")):
                odds = official(batch, seen(number), pair, to_text=part == 1, same_image=same_image)
                keys = torch.cat((batch.pair_keys, torch.arange(PLACES)))
                draws = seed.uniform(seed.fold(batch.pair_keys[pair], keys), purpose, 1)[:, 0].double()
                expected = int((torch.tensor(odds) / -torch.log(draws + 2**-25)).argmax())
                judged = pairs[0 if part else 1, pair]
                assert judged[1 - part] == batch.pairs[pair, 1 - part]
                size = len(batch.text_ids) if part else len(batch.images)
                if expected < PAIRS:
                    assert judged[part] == batch.pairs[expected, part] and passes.samples[pair, part] == -1
                    of_batch += 1
                    of_own_image += int(batch.pairs[expected, 0] == batch.pairs[pair, 0])
                else:
                    assert judged[part] == size + pair
                    place = expected - PAIRS
                    assert passes.samples[pair, part] == FIRST + place - EMPTY_PLACES
                    of_queue += 1
    assert of_queue > 30 and of_batch > 30 and (of_own_image > 0) is same_image


def test_draws_follow_the_official_weights() -> None:
    batch, found, counts = make_batch(PAIRS, partners=False), seen(), np.zeros(PAIRS + PLACES)
    for number in range(300):  # all pairs alike but for their keys
        batch = replace(batch, pair_keys=make_batch(PAIRS, partners=False, seed=number).pair_keys)
        result, passes = drawn(batch, found)
        text, sample = result.pairs[0, 1], passes.samples[0, 1]
        counts[int(text) if sample < 0 else PAIRS + EMPTY_PLACES + int(sample) - FIRST] += 1
    odds = official(batch, found, 0, to_text=True, same_image=False)
    assert (counts[odds == 0] == 0).all()
    often = odds / odds.sum() * 300 > 4
    observed = np.append(counts[often], counts[~often].sum())
    expected = np.append(odds[often], odds[~often].sum())
    assert stats.chisquare(observed, expected / expected.sum() * 300).pvalue > 0.001


def test_one_sample_in_two_places_of_the_queue_is_twice_as_likely() -> None:
    found, twice = seen(), 0
    assert found.past is not None
    rows = torch.full((PLACES,), -1)
    rows[:3] = torch.tensor([20, 20, 21])
    flat = torch.zeros(PAIRS, PLACES)
    queue = replace(found.past, rows=rows, samples=rows + FIRST, image_to_text=flat, text_to_image=flat)
    found = Similarity(torch.full((PAIRS, PAIRS), -50.0), torch.full((PAIRS, PAIRS), -50.0), 0, queue)
    for number in range(60):
        batch = make_batch(PAIRS, partners=False, seed=number)
        twice += int((drawn(batch, found)[1].samples == 120).sum())
    assert stats.binomtest(twice, 60 * 2 * PAIRS, 2 / 3).pvalue > 0.001


def test_an_empty_queue_draws_of_the_batch_and_names_nothing() -> None:
    batch, found = make_batch(PAIRS, partners=False), seen()
    assert found.past is not None
    rows = torch.full((PLACES,), -1)
    empty = replace(found, past=replace(found.past, rows=rows, samples=rows))
    result, passes = drawn(batch, empty)
    assert (passes.samples == -1).all() and not result.fetched.any()
    plain = Similar(batch, found)
    among = hard_negatives.candidates(batch, "batch")
    hard_negatives.ask(plain, "clean", "batch", among)  # type: ignore[arg-type]
    assert torch.equal(result.pairs, plain.asked[0])


def test_the_order_of_the_pairs_changes_no_draw() -> None:
    batch, found = make_batch(PAIRS, partners=False), seen()
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    mixed = replace(batch, pairs=batch.pairs[order], pair_keys=batch.pair_keys[order])
    forth, back = (m[order][:, order] for m in (found.image_to_text, found.text_to_image))
    assert found.past is not None
    queue = replace(
        found.past,
        image_to_text=found.past.image_to_text[order],
        text_to_image=found.past.text_to_image[order],
    )
    one, other = drawn(batch, found)[1], drawn(mixed, Similarity(forth, back, 0, queue))[1]
    assert torch.equal(one.samples[order], other.samples) and (other.samples >= 0).any()


def test_what_is_not_finite_fetches_only_what_may_be_drawn() -> None:
    for value in (torch.nan, torch.inf):
        found = seen()
        assert found.past is not None
        queue = replace(found.past, image_to_text=torch.full((PAIRS, PLACES), value))
        _, passes = drawn(make_batch(PAIRS, partners=False), replace(found, past=queue))
        rows = passes.samples[:, 1]
        assert ((rows == -1) | (rows >= FIRST)).all()


class Case:
    """A pair of the queue that is certainly drawn: the first text's image, all texts' from elsewhere."""

    def __init__(self) -> None:
        self.batch, self.found = make_batch(PAIRS, partners=False), seen()
        assert self.found.past is not None
        self.found.past.text_to_image[0, EMPTY_PLACES + 9] += 60
        self.itm = ITM(Table(view="clean", negatives="queue", negatives_delay=0), 2, 6)
        self.itm.told(BatchSize(global_pairs=PAIRS, micro_pairs=PAIRS))

    def loss(self, bad: int = -1, training: bool = True):  # type: ignore[no-untyped-def]
        found = self.found if training else replace(self.found, past=None)
        passes = Bringing(self.batch, found, bad)
        _, targets = self.itm.prepare(self.batch)
        return self.itm.loss(passes, targets, self.itm.begin(passes, targets)), passes  # type: ignore[arg-type]


def test_no_state_is_kept_between_steps() -> None:
    case = Case()
    case.loss()
    assert case.itm.pool is None and not list(case.itm.buffers())
    case.itm.after_step(torch.tensor(True))


def test_all_three_kinds_of_pairs_are_judged_and_told() -> None:
    case = Case()
    loss, passes = case.loss()
    assert float(loss.count) == 3 * PAIRS and len(loss.predictions) == 3 * PAIRS
    assert passes.samples[0, 0] == FIRST + 9
    fetched, total = (float(value) for value in loss.metrics["from_queue"])
    assert fetched == int((passes.samples >= 0).sum()) and total == 2 * PAIRS
    assert case.itm.seconds["fetching"] > 0


def test_an_image_that_cannot_be_read_is_not_judged() -> None:
    case = Case()
    whole, _ = case.loss()
    cut, passes = case.loss(bad=FIRST + 9)
    missing = int((passes.samples[:, 0] == FIRST + 9).sum())
    assert missing and float(whole.metrics["hardness"][1] - cut.metrics["hardness"][1]) == missing
    pairs = whole.drawn[PAIRS:].float()[passes.samples[:, 0] == FIRST + 9]
    entropy = -case.itm.head(pairs).log_softmax(1)[:, 0].sum()
    assert float((whole.sum - cut.sum).detach()) == pytest.approx(float(entropy), rel=1e-4)


def test_evaluation_draws_of_the_batch_alone() -> None:
    loss, passes = Case().loss(training=False)
    assert not len(passes.samples) and float(loss.metrics["from_queue"][0]) == 0


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ("objectives.itm.negatives_delay=0",),
            "negatives_delay = 0 is about negatives = 'queue', not 'batch'",
        ),
        (AT_ONCE, "needs a queue; set objectives.itc.queue"),
        ((*AT_ONCE, "objectives.itc.queue=8", "batch.micro_pairs=1"), "needs two images in a micro-batch"),
        (("objectives.itm.same_image=negative",), "set both alike"),
        (("objectives.itm={negatives='loader',same_image='negative'}",), "is about hard negatives"),
        (("objectives.itm.negatives_delay=2",), "negatives_delay"),
    ],
)
def test_what_contradicts_is_refused(overrides: tuple[str, ...], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        make_fiber_recipe(*overrides)


def test_a_share_of_the_contrastive_batch_has_two_images() -> None:
    gathered = ("batch.micro_pairs=false", "batch.contrastive_pairs=8", "objectives.itc.queue=8")
    shown = make_fiber_recipe(*AT_ONCE, *gathered)
    assert micro_pairs(shown, 4) == 2
    with pytest.raises(RecipeError, match=r"one of \[1, 2, 4\] processes"):
        micro_pairs(shown, 8)


def test_the_official_training_of_fibers_recipe_is_a_recipe() -> None:
    lines = (config.RECIPES / "pretrain_fiber.toml").read_text().splitlines()
    said = " ".join(line.strip("# .") for line in lines[:12]).partition("official training is: ")[2]
    overrides = [word for word in said.split() if "=" in word]
    shown = recipe.load("pretrain_fiber", overrides)
    assert len(overrides) == 12 and micro_pairs(shown, 64) == 8 and recipe.accumulation(shown, 64) == 8
    itc, itm = shown.objectives.itc, shown.objectives.itm
    assert (
        itm is not None and itm.negatives_delay == 0 and itc is not None and itc.same_image == itm.same_image
    )


def test_noise_in_the_queue_is_neither_drawn_nor_weighed() -> None:
    """Noise counts for ITC's loss and is never drawn: its softmax leaves it out."""
    batch, found = make_batch(PAIRS, partners=False), seen()
    queue = found.past
    assert isinstance(queue, Past) and (queue.rows[2:4] == -2).all()
    loud = replace(queue, image_to_text=queue.image_to_text.clone())
    loud.image_to_text[:, 2:4] += 60
    (one, _), (other, _) = (drawn(batch, replace(found, past=each)) for each in (queue, loud))
    assert torch.equal(one.pairs, other.pairs) and torch.equal(one.hardness, other.hardness)
