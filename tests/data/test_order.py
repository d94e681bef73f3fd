import tracemalloc

import numpy as np
import pytest

from dsvlp.data.order import Order, Permutation


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_a_permutation_is_a_bijection_of_any_size(size):
    images = Permutation(size, key=7)(np.arange(size))
    assert sorted(images.tolist()) == list(range(size))


def test_permutations_of_two_keys_agree_in_few_places():
    first, second = (Permutation(1000, key)(np.arange(1000)) for key in (1, 2))
    assert (first == second).sum() < 20
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.1


def test_every_unit_comes_once_in_every_epoch_and_epochs_differ():
    order = Order([10, 0, 7, 13, 1], open_shards=2, key=3)
    epochs, units = order.at(np.arange(3 * 31))
    assert (epochs == np.repeat([0, 1, 2], 31)).all()
    by_epoch = units.reshape(3, 31)
    assert (np.sort(by_epoch, axis=1) == np.arange(31)).all()
    assert (by_epoch[0] != by_epoch[1]).any()


def test_a_place_does_not_depend_on_what_is_asked_with_it():
    order = Order([10, 7, 13], open_shards=2, key=3)
    _, together = order.at(np.arange(60))
    alone = [int(order.at(np.array([position]))[1][0]) for position in range(60)]
    assert together.tolist() == alone


def test_no_more_shards_than_the_window_are_read_at_a_time():
    sizes = [50] * 8
    _, units = Order(sizes, open_shards=3, key=1).at(np.arange(400))
    shards = units // 50
    windows = [set(shards[:150]), set(shards[150:300]), set(shards[300:])]
    assert [len(window) for window in windows] == [3, 3, 2]
    assert len(set(shards[:30])) == 3  # mixed within the window


def test_a_thousand_million_units_take_less_than_a_megabyte():
    tracemalloc.start()
    order = Order([10**6] * 1000, open_shards=4, key=5)
    _, units = order.at(np.arange(123_456_789, 123_456_789 + 1024))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(units.tolist())) == 1024 and units.max() < 10**9
    assert peak < 1_000_000
