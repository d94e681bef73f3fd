import numpy as np
import pytest

from dsvlp.data.partner import mismatched_half, partners


@pytest.mark.parametrize("images", [[0, 1], [0, 0, 1, 1], list(range(64)), [i // 5 for i in range(60)]])
def test_partners_are_a_permutation_that_shows_another_image(images):
    images = np.array(images)
    for key in range(50):
        partner, found = partners(key, images)
        assert sorted(partner.tolist()) == list(range(len(images)))
        assert found.all()
        assert (images[partner] != images).all()


def test_a_pair_that_can_have_no_partner_is_reported():
    images = np.array([4, 4, 4, 4, 9])
    partner, found = partners(3, images)
    assert found.sum() == 2  # the odd one out, and the one that got it
    assert (images[partner] != images).tolist() == found.tolist()
    assert not partners(0, np.array([1]))[1].any()


def test_partners_depend_on_the_key_alone():
    images = np.arange(100)
    assert (partners(5, images)[0] == partners(5, images)[0]).all()
    assert (partners(5, images)[0] != partners(6, images)[0]).any()


def test_exactly_half_are_mismatched_and_every_position_is_in_turn():
    halves = np.stack([mismatched_half(key, 10) for key in range(400)])
    assert (halves.sum(1) == 5).all()
    assert mismatched_half(0, 7).sum() == 3
    assert np.abs(halves.mean(0) - 0.5).max() < 0.12
