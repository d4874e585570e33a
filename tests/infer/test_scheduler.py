"""What is kept of earlier prompts, and what goes first."""

import numpy as np

from gptjax.infer.scheduler import PrefixCache

BLOCK = np.zeros(1, np.uint8)  # a byte


def read(cache, prompt):
    """Reads a prompt as an engine does; the tokens that were found."""
    found = len(cache.find(prompt)) * cache.chunk
    for end in range(found + cache.chunk, len(prompt) + 1, cache.chunk):
        cache.add(prompt, end, BLOCK)
    return found


def test_a_conversation_longer_than_the_capacity_keeps_its_beginning():
    cache = PrefixCache(chunk=2, capacity=3)
    prompt = list(range(8))  # four blocks
    read(cache, prompt)
    assert cache.bytes == 3
    # Without its first block none of the others could be found.
    assert [read(cache, prompt) for _ in range(3)] == [6, 6, 6]


def test_what_was_used_least_goes_first_and_its_end_before_its_beginning():
    cache = PrefixCache(chunk=1, capacity=4)
    old, new = [1, 2], [3, 4]
    read(cache, old), read(cache, new)
    assert read(cache, new) == 2
    read(cache, [5])
    assert (read(cache, new), len(cache.find(old))) == (2, 1)
    assert cache.find([3, 9]) == [BLOCK]
