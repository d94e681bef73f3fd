"""Random draws as pure functions of (key, purpose): no generator, no state, no rank.

Order, augmentation, corruption, negatives and sampling draw from here, so that a draw depends
neither on the worker, nor on the rank, nor on how the batch is cut. A *key* is a 64-bit hash made
by the loader from (seed, epoch, image or pair id); a *purpose* is a word such as "mlm.select".
The functions take NumPy int64 arrays and torch int64 tensors alike (both wrap around), hence
no import of torch: the same key gives the same draw on the login node, the CPU and the GPU.

The hash is SplitMix64's finalizer (Steele, Lea, Flood: "Fast splittable pseudorandom number
generators", OOPSLA 2014).
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

Ints = Any  # NumPy int64 array or torch int64 tensor; what goes in comes out

_MASK = (1 << 64) - 1


def signed(value: int) -> int:
    """Returns the low 64 bits of `value` as a signed integer, as int64 arrays need them."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = signed(0x9E3779B97F4A7C15)
_MIX_1 = signed(0xBF58476D1CE4E5B9)
_MIX_2 = signed(0x94D049BB133111EB)


def _shift(values: Ints, bits: int) -> Ints:
    """Returns the logical right shift; `>>` on int64 is arithmetic."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def mix(values: Ints) -> Ints:
    """Returns SplitMix64's finalizer of each element, a bijection of the 64-bit integers."""
    values = (values ^ _shift(values, 30)) * _MIX_1
    values = (values ^ _shift(values, 27)) * _MIX_2
    return values ^ _shift(values, 31)


def salt(purpose: str) -> int:
    """Returns the 64-bit salt of a purpose, stable over processes and versions of Python."""
    data = purpose.encode()
    return signed((zlib.crc32(data) << 32) ^ zlib.crc32(data[::-1]) ^ 0xD5B1)


def fold(keys: Ints, value: Any) -> Ints:
    """Returns new keys that depend on `keys` and on `value` (an int, or ints that broadcast)."""
    spread = signed(value * _GOLDEN) if isinstance(value, int) else value * _GOLDEN
    return mix(mix(keys + _GOLDEN) ^ spread)


def key_of(*values: int | str) -> int:
    """Returns one 64-bit key of integers and words, e.g. `key_of(seed, epoch, "order")`."""
    key = np.zeros(1, np.int64)
    for value in values:
        key = fold(key, salt(value) if isinstance(value, str) else int(value))
    return int(key[0])


def _counters(like: Ints, count: int) -> Ints:
    if isinstance(like, np.ndarray):
        return np.arange(1, count + 1, dtype=np.int64)
    return like.new_ones(count).cumsum(0)


def bits(keys: Ints, purpose: str, count: int) -> Ints:
    """Returns 64 random bits for each key and each of `count` draws.

    Args:
        keys: int64 of any shape [...].
        purpose: the word that keeps this draw apart from all others.
        count: draws a key.

    Returns:
        int64 [..., count].
    """
    return fold(fold(keys, salt(purpose))[..., None], _counters(keys, count))


def uniform(keys: Ints, purpose: str, count: int) -> Ints:
    """Returns draws from [0, 1) as float32 [..., count]: 24 bits, exact in every framework."""
    draws = _shift(bits(keys, purpose, count), 40)
    if isinstance(draws, np.ndarray):
        return draws.astype(np.float32) * np.float32(2**-24)
    return draws.float() * 2**-24


def integers(keys: Ints, purpose: str, count: int, high: int) -> Ints:
    """Returns draws from 0 .. high-1 as int64 [..., count] (bias below high / 2^40)."""
    return _shift(bits(keys, purpose, count), 24) % high
