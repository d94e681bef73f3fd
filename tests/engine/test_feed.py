"""Negatives from the queue, from the draw in one step to the next step's batch."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch

from dsvlp.data.fetch import Fetcher
from dsvlp.engine.feed import AtOnce, Feed
from dsvlp.objectives.pool import EMPTY, Pool
from dsvlp.system import Prepared
from dsvlp.types import Batch, Fetched
from tests.batches import make_batch
from tests.data.pictures_of_noise import make_dataset, make_recipe, make_tokenizer

MICRO, ACCUMULATION, WIDTH = 4, 2, 6
SAMPLES = torch.arange(16).view(8, 2)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], Any]:
    dataset = make_dataset(tmp_path_factory.mktemp("feed"), "noise", [2] * 10)
    return [dataset], make_tokenizer([dataset])


@pytest.fixture
def fetcher(noise: tuple[list[Any], Any]) -> Iterator[Fetcher]:
    with Fetcher(make_recipe(), *noise, ACCUMULATION) as made:
        yield made


def batches() -> list[Batch]:
    return [make_batch(MICRO, seed=seed) for seed in range(ACCUMULATION)]


def fetched(brought: list[Batch]) -> list[Fetched]:
    out = [batch.fetched for batch in brought]
    assert all(part is not None for part in out)
    return out  # type: ignore[return-value]


def draw(pool: Pool, feed: Feed | None, step: int, samples: torch.Tensor) -> None:
    """A step's forwards: each micro-batch draws, then the step ends."""
    for number in range(ACCUMULATION):
        part = samples[number * MICRO : (number + 1) * MICRO]
        pool.remember(part, torch.rand(MICRO, WIDTH), torch.rand(MICRO, WIDTH))
        if feed is not None:
            feed.drawn(step + 1, number)
    pool.settle()


def test_the_first_step_has_empty_places(fetcher: Fetcher) -> None:
    feed = Feed(Pool(8, WIDTH), fetcher, MICRO, ACCUMULATION)
    brought = feed.bring(1, batches())
    for batch, plain, first in zip(brought, batches(), (0, MICRO), strict=True):
        assert torch.equal(batch.images, plain.images)
        (past,) = fetched([batch])
        assert (past.rows == EMPTY).all() and past.places.tolist() == list(range(first, first + MICRO))


def test_a_step_has_what_the_one_before_it_drew(fetcher: Fetcher) -> None:
    pool = Pool(8, WIDTH)
    feed = Feed(pool, fetcher, MICRO, ACCUMULATION)
    for step, samples in enumerate((SAMPLES, SAMPLES.flip(0), SAMPLES.roll(3, 0)), 1):
        brought = fetched(feed.bring(step, batches()))
        assert torch.equal(torch.cat([past.samples for past in brought]), pool.samples)
        draw(pool, feed, step, samples)


def test_a_resumed_run_has_the_same_pictures(fetcher: Fetcher, noise: tuple[list[Any], Any]) -> None:
    pool = Pool(8, WIDTH)
    feed = Feed(pool, fetcher, MICRO, ACCUMULATION)
    feed.bring(1, batches())
    draw(pool, feed, 1, SAMPLES)
    with Fetcher(make_recipe("data.workers=0"), *noise, 1) as other:
        resumed = Feed(pool, other, MICRO, ACCUMULATION).bring(2, batches())
    for one, again in zip(fetched(feed.bring(2, batches())), fetched(resumed), strict=True):
        for field in fields(Fetched):
            assert torch.equal(getattr(one, field.name), getattr(again, field.name)), field.name


def test_pictures_are_fetched_before_the_step_that_needs_them_begins(
    fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, asked = Pool(8, WIDTH), []
    feed = Feed(pool, fetcher, MICRO, ACCUMULATION)
    feed.bring(1, batches())
    ask = fetcher.ask
    monkeypatch.setattr(fetcher, "ask", lambda *request: (asked.append(request[:2]), ask(*request)))
    draw(pool, feed, 1, SAMPLES)
    assert asked == [(2, 0), (2, MICRO)]
    feed.bring(2, batches())
    assert len(asked) == ACCUMULATION


def test_a_gap_between_steps_is_not_passed_over(fetcher: Fetcher) -> None:
    pool = Pool(8, WIDTH)
    feed = Feed(pool, fetcher, MICRO, ACCUMULATION)
    feed.bring(1, batches())
    draw(pool, feed, 1, SAMPLES)
    with pytest.raises(AssertionError, match="step 2 was asked for, not 3"):
        feed.bring(3, batches())


def test_what_is_asked_for_at_once_comes_at_once_and_stands_in_every_view(fetcher: Fetcher) -> None:
    bring = AtOnce(fetcher, 3, MICRO, torch.device("cpu"))
    brought = bring(SAMPLES[:MICRO])
    fetcher.ask(3, MICRO, lambda: SAMPLES[:MICRO])
    expected = fetcher.take()
    for field in fields(Fetched):
        assert torch.equal(getattr(brought, field.name), getattr(expected, field.name)), field.name
    plain = batches()[0]
    seen = bring.seen(Prepared({"clean": plain, "masked": plain}, {}))
    assert all(view.fetched is brought for view in seen.views.values()) and plain.fetched is None
