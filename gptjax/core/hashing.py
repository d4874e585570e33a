"""Reproducible numbers from text by SHA-256, for splits, samples and seeds."""

import hashlib


def hash_words(*words) -> bytes:
    """SHA-256 of the words, converted to text and joined by NUL."""
    return hashlib.sha256('\0'.join(map(str, words)).encode()).digest()


def hash_integer(*words, num_bytes: int = 8) -> int:
    """A number from 0 to 2**(8 * num_bytes) - 1."""
    return int.from_bytes(hash_words(*words)[:num_bytes], 'big')


def hash_fraction(*words) -> float:
    """A number from 0 to below 1.

    `hash_fraction(id) < 0.05` is true for about one id in twenty.
    """
    return hash_integer(*words) / 2**64
