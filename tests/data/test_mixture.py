import numpy as np
import pytest

from dsvlp.data.mixture import Mixture, whole_counts


@pytest.mark.parametrize("weights", [(1,), (1, 1), (3, 1), (0.7, 0.2, 0.1), (5, 3.3, 0.01), (1e6, 1)])
def test_counts_follow_the_weights_at_every_position(weights):
    shares = np.array(whole_counts(weights)) / sum(whole_counts(weights))
    sources, own = Mixture(weights).at(np.arange(20_000))
    for source in range(len(weights)):
        mine = np.cumsum(sources == source)
        expected = np.arange(1, 20_001) * shares[source]
        assert np.abs(mine - expected).max() <= len(weights)
        assert own[sources == source].tolist() == list(range(mine[-1]))  # its own positions, none left out


def test_counts_that_cannot_be_exact_are_within_a_cycle_of_4096():
    many, few = whole_counts((np.pi, 1.0))
    assert many + few == 4096 and many / 4096 == pytest.approx(np.pi / (np.pi + 1), abs=1 / 4096)
    assert whole_counts((1e6, 1.0))[1] == 1


def test_whole_counts_are_the_smallest():
    assert whole_counts((2.0, 1.0)) == [2, 1]
    assert whole_counts((0.7, 0.2, 0.1)) == [7, 2, 1]
    assert whole_counts((0.5, 0.25, 0.25)) == [2, 1, 1]


def test_a_far_position_costs_no_more_than_a_near_one():
    mixture = Mixture((3, 1))
    _, own = mixture.at(np.array([4 * 10**12, 4 * 10**12 + 1, 4 * 10**12 + 2, 4 * 10**12 + 3]))
    assert sorted(own.tolist()) == [10**12, 3 * 10**12, 3 * 10**12 + 1, 3 * 10**12 + 2]
