"""Permutations that need no memory: where index i goes is computed, not looked up.

A Feistel network permutes the numbers of 2k bits: each round replaces one half by
its exclusive or with a hash of the other, which the same hash undoes. Numbers at or
above `size` are permuted again until they fall below it (cycle walking), which
leaves a permutation of 0 … size - 1. The arithmetic is our own and 64-bit, so the
order is the same on every machine and with every version of every library.
"""

import hashlib

import numpy as np

ROUNDS = 8  # pairs of rounds would do from 4 on; small sizes gain from more


def permute(index: np.ndarray, size: int, key: str) -> np.ndarray:
    """The places to which a permutation of 0 … size - 1 takes `index`.

    Args:
        index: integers in [0, size), any shape.
        size: how many numbers are permuted, below 2^62.
        key: names the permutation; another key gives an unrelated one.

    Returns:
        int64 array of the shape of `index`.
    """
    index = np.asarray(index)
    if index.size and not (0 <= index.min() and index.max() < size):
        raise ValueError(f'index outside 0 … {size - 1}')
    low_bits = max(1, (size - 1).bit_length() // 2)
    high_bits = max(1, (size - 1).bit_length() - low_bits)
    digest = hashlib.shake_256(key.encode()).digest(8 * ROUNDS)
    keys = np.frombuffer(digest, '<u8')

    place = index.astype(np.uint64).ravel()
    outside = np.ones(place.shape, bool)
    while outside.any():
        place[outside] = _feistel(place[outside], low_bits, high_bits, keys)
        outside = place >= size
    return place.astype(np.int64).reshape(index.shape)


def _feistel(value, low_bits, high_bits, keys):
    low = value & np.uint64((1 << low_bits) - 1)
    high = value >> np.uint64(low_bits)
    for even, odd in keys.reshape(-1, 2):
        high ^= _hash(low, even) >> np.uint64(64 - high_bits)
        low ^= _hash(high, odd) >> np.uint64(64 - low_bits)
    return high << np.uint64(low_bits) | low


def _hash(value, key):
    """64 well-mixed bits: the finaliser of Steele et al. 2014, SplitMix, section 3."""
    value = value + key
    value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return value ^ value >> np.uint64(31)
