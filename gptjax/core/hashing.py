"""Numbers that only their words decide: splits, draws and seeds by SHA-256.

One place for all of them, so that the same words give the same number everywhere.
"""

import hashlib


def hash_words(*words) -> bytes:
    """SHA-256 of the words in this order, as text with NUL between them."""
    return hashlib.sha256('\0'.join(map(str, words)).encode()).digest()


def hash_integer(*words, num_bytes: int = 8) -> int:
    """A number from 0 to 2**(8 * num_bytes) - 1."""
    return int.from_bytes(hash_words(*words)[:num_bytes], 'big')


def hash_fraction(*words) -> float:
    """A number from 0 to below 1.

    hash_fraction('chitchat/1') < 0.05 holds for a twentieth of all ids.
    """
    return hash_integer(*words) / 2**64
