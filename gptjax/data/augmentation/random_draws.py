"""Random numbers of a row that depend on nothing but their key."""

import numpy as np

from gptjax.core.hashing import hash_integer


class Draws:
    """A stream of numbers from 0 to below 1.

    The generator is counter-based (Philox, Salmon et al. 2011) and its key is a hash of
    `key`, such as (seed, source, epoch, row, augmentation). So the numbers of a row do
    not depend on other rows, on the batch size, or on the host that loads it.
    """

    def __init__(self, *key):
        bits = np.random.Philox(key=hash_integer(*key, num_bytes=16))
        self._generator = np.random.Generator(bits)
        self._ready = []

    def __call__(self) -> float:
        """One number; they are drawn by the hundred, which is faster."""
        if not self._ready:
            self._ready = self._generator.random(128).tolist()
        return self._ready.pop()

    def array(self, size: int) -> np.ndarray:
        """(size,) float64."""
        return self._generator.random(size)

    def below(self, limit: int) -> int:
        """A whole number from 0 to limit - 1."""
        return int(self() * limit)
