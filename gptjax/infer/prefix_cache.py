"""Blocks of keys and values of prompts that were read before.

A block is the cache of one full chunk of a prompt, and is known by all tokens up to
its end. It holds what `prefill` wrote there, bit for bit, so a prompt that finds its
blocks is gone on from exactly as one that computes them.
"""

from collections import OrderedDict
from collections.abc import Sequence

import jax


class PrefixCache:
    """The blocks used last, up to a number of bytes.

    Args:
        chunk: tokens in a block.
        capacity: bytes; 0 keeps nothing.
    """

    def __init__(self, chunk: int, capacity: int):
        self.chunk = chunk
        self.capacity = capacity
        self.bytes = 0
        self._blocks = OrderedDict()  # the tokens up to its end -> block

    def find(self, prompt: Sequence[int]) -> list:
        """The blocks that `prompt` begins with, in order."""
        keys = []
        for end in range(self.chunk, len(prompt) + 1, self.chunk):
            key = tuple(prompt[:end])
            if key not in self._blocks:
                break
            keys.append(key)
        self._touch(keys)
        return [self._blocks[key] for key in keys]

    def has(self, prompt: Sequence[int], end: int) -> bool:
        return tuple(prompt[:end]) in self._blocks

    def keep(self, prompt: Sequence[int], end: int, block) -> None:
        """Remembers the block that ends before token `end` of `prompt`."""
        size = _size(block)
        if size > self.capacity:
            return
        self._blocks[tuple(prompt[:end])] = block
        self.bytes += size
        before = (tuple(prompt[:at]) for at in range(self.chunk, end, self.chunk))
        self._touch([key for key in before if key in self._blocks])
        while self.bytes > self.capacity:
            _, dropped = self._blocks.popitem(last=False)
            self.bytes -= _size(dropped)

    def _touch(self, keys):
        """Used now, the beginning last: without it the others could not be found."""
        for key in reversed(keys):
            self._blocks.move_to_end(key)


def _size(block) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(block))
