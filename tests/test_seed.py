"""dsvlp.seed: draws are pure, equal in NumPy and torch, and look uniform and independent."""

import numpy as np
import pytest
import torch

from dsvlp import seed

KEYS = np.array([0, 1, -1, 2**62, -(2**63), 123456789], np.int64)


def test_numpy_and_torch_draw_the_same_bits():
    ours = torch.from_numpy(KEYS)
    assert np.array_equal(seed.bits(KEYS, "a", 9), seed.bits(ours, "a", 9).numpy())
    assert np.array_equal(seed.uniform(KEYS, "a", 9), seed.uniform(ours, "a", 9).numpy())
    assert np.array_equal(seed.integers(KEYS, "a", 9, 17), seed.integers(ours, "a", 9, 17).numpy())


def test_mix_follows_splitmix64_in_python_integers():
    def reference(x: int) -> int:
        mask = (1 << 64) - 1
        x &= mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    assert [seed.signed(reference(int(k))) for k in KEYS] == seed.mix(KEYS).tolist()


def test_a_draw_depends_on_key_purpose_and_position_only():
    one = seed.bits(KEYS, "a", 4)
    assert np.array_equal(one[2], seed.bits(KEYS[2:3], "a", 4)[0])
    assert np.array_equal(one[:, :2], seed.bits(KEYS, "a", 2))
    assert not (one == seed.bits(KEYS, "b", 4)).any()


@pytest.mark.parametrize("purposes", [("a", "b"), ("mlm.select", "mlm.kind")])
def test_draws_are_uniform_and_uncorrelated(purposes):
    keys = np.arange(20000, dtype=np.int64)
    draws = np.concatenate([seed.uniform(keys, p, 3) for p in purposes], 1)
    assert draws.min() >= 0 and draws.max() < 1
    assert np.abs(draws.mean(0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(6)).max() < 0.03
    assert np.abs(np.histogram(draws[:, 0], 10, (0, 1))[0] / 2000 - 1).max() < 0.1


def test_key_of_tells_words_and_numbers_apart():
    keys = {
        seed.key_of(0, 1, "order"),
        seed.key_of(1, 0, "order"),
        seed.key_of(0, 1, "crop"),
        seed.key_of(0, 1),
    }
    assert len(keys) == 4
    assert seed.key_of(3, "order") == seed.key_of(3, "order")
