"""Global batches of images that keep their aspect: the order alone, without a picture."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from dsvlp.data.dealer import Dealer
from dsvlp.data.frames import Framing
from dsvlp.data.plan import Stream
from tests.data.pictures_of_noise import make_dataset

SIDES = ((40, 56), (64, 32), (48, 48), (30, 60), (60, 40), (40, 60), (50, 40))
ASPECTS, SQUARES = Framing(64, 128), Framing(64)
BATCH, WINDOW, IMAGES, SEED = 6, 4, 48, 3  # an epoch is two windows


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dealer")
    return [make_dataset(folder, "all", [1] * IMAGES, rows_per_shard=10, sides=SIDES)]


def stream(datasets) -> Stream:
    return Stream(datasets, [1.0] * len(datasets), 1, 4, SEED)


def dealer(datasets, framing: Framing = ASPECTS, window: int = WINDOW, end: int | None = None) -> Dealer:
    return Dealer(stream(datasets), framing, BATCH, window, SEED, end)


def sizes_of(datasets, dealt) -> np.ndarray:
    return np.array([SIDES[row % len(SIDES)] for row in dealt.groups.rows])


def test_sizes_come_from_the_shards_metadata(datasets):
    rows = np.array([3, 47, 0, 11, 11, 29])
    assert datasets[0].sizes(rows).tolist() == [list(SIDES[row % len(SIDES)]) for row in rows]
    assert datasets[0].sizes(np.arange(0)).shape == (0, 2)


def test_every_sample_is_dealt_once_an_epoch(datasets):
    deal = dealer(datasets)
    dealt = [deal.at(step) for step in range(3 * IMAGES // BATCH)]
    for epoch in range(3):
        rows = [row for one in dealt for row in one.groups.rows[one.groups.epoch == epoch]]
        assert sorted(rows) == list(range(IMAGES))
    assert all(one.real == BATCH for one in dealt)


@pytest.mark.parametrize("window", [3, 5, 16])
def test_windows_that_cross_epochs_deal_each_place_of_the_stream_once(datasets, window):
    deal, steps = dealer(datasets, window=window), 4 * window
    found = Counter((e, r) for s in range(steps) for e, r in _names(deal.at(s).groups))
    assert found == Counter(_names(stream(datasets).at(np.arange(steps * BATCH))))


def _names(groups) -> list[tuple[int, int]]:
    return list(zip(groups.epoch.tolist(), groups.rows.tolist(), strict=True))


def test_a_batch_has_neighbouring_ratios_and_one_of_a_window_alone_both_orientations(datasets):
    deal, orders = dealer(datasets), set()
    for window in range(4):
        dealt = [deal.at(window * WINDOW + number) for number in range(WINDOW)]
        ratios = [sizes[:, 1] / sizes[:, 0] for sizes in (sizes_of(datasets, one) for one in dealt)]
        spans = sorted((each.min(), each.max()) for each in ratios)
        assert all(first[1] <= second[0] for first, second in pairwise(spans))
        assert sum(low <= 1 < high for low, high in spans) <= 1
        orders.add(tuple(np.argsort([each.mean() for each in ratios]).tolist()))
    assert len(orders) > 1  # the batches of a window are shuffled


def test_a_canvas_is_the_smallest_for_its_global_batch(datasets):
    deal, area, unsorted = dealer(datasets), 0, 0
    for step in range(16):
        one = deal.at(step)
        assert one.canvas == ASPECTS.canvas(ASPECTS.frames(sizes_of(datasets, one)))
        area += one.canvas[0] * one.canvas[1]
        plain = stream(datasets).at(np.arange(step * BATCH, (step + 1) * BATCH))
        height, width = ASPECTS.canvas(ASPECTS.frames(datasets[0].sizes(plain.rows)))
        unsorted += height * width
    assert area < 0.8 * unsorted


def test_a_step_is_dealt_alike_from_anywhere(datasets):
    through = dealer(datasets)
    every = [through.at(step) for step in range(12)]
    for step in (11, 6, 2, 7):
        alone = dealer(datasets).at(step)
        assert alone.canvas == every[step].canvas
        assert np.array_equal(alone.groups.samples, every[step].groups.samples)


def test_what_is_done_to_a_batch_touches_no_other(datasets):
    deal = dealer(datasets)
    first = deal.at(0)
    first.groups.weight[:], first.groups.rows[:] = 0, -1
    assert all((deal.at(step).groups.weight == 1).all() for step in range(WINDOW))
    assert (deal.at(0).groups.rows >= 0).all()


def test_squares_are_dealt_in_the_streams_order(datasets):
    deal = dealer(datasets, SQUARES)
    for step in range(5):
        one = deal.at(step)
        expected = stream(datasets).at(np.arange(step * BATCH, (step + 1) * BATCH))
        assert one.canvas == (64, 64) and np.array_equal(one.groups.samples, expected.samples)
    assert Dealer(stream(datasets), None, BATCH, WINDOW, SEED).at(0).canvas is None


@pytest.mark.parametrize("framing", [ASPECTS, SQUARES], ids=["aspects", "squares"])
@pytest.mark.parametrize("end", [1, 6, 23, 24, 41, 48])
def test_an_evaluation_deals_each_sample_once_and_fills_its_last_batch(datasets, framing, end):
    deal = dealer(datasets, framing, end=end)
    dealt = [deal.at(step) for step in range(-(-end // BATCH))]
    assert all(len(one.groups.rows) == BATCH for one in dealt)
    assert all(one.real == BATCH for one in dealt[:-1]) and 0 < dealt[-1].real <= BATCH
    real = [row for one in dealt for row in one.groups.rows[: one.real]]
    assert sorted(real) == sorted(stream(datasets).at(np.arange(end)).rows)
