"""The prefix cache keeps the prefixes of the most recently used prompts."""

import numpy as np

from gptjax.infer.scheduler import PrefixCache

BLOCK = np.zeros(1, np.uint8)  # one byte


def prefill(cache, prompt):
    """Finds and adds blocks as the scheduler does; returns the tokens found."""
    num_found = len(cache.find(prompt)) * cache.chunk
    for end in range(num_found + cache.chunk, len(prompt) + 1, cache.chunk):
        cache.add(prompt[:end], BLOCK)
    return num_found


def test_a_conversation_longer_than_the_capacity_keeps_its_beginning():
    cache = PrefixCache(chunk=2, capacity=3)
    prompt = list(range(8))  # four blocks
    prefill(cache, prompt)
    assert cache.bytes == 3
    # Without the first block, `find` would reach none of the others.
    assert [prefill(cache, prompt) for _ in range(3)] == [6, 6, 6]


def test_the_least_recently_used_prompt_is_dropped_first_from_its_end():
    cache = PrefixCache(chunk=1, capacity=4)
    old, new = [1, 2], [3, 4]
    prefill(cache, old), prefill(cache, new)
    assert prefill(cache, new) == 2
    prefill(cache, [5])
    assert (prefill(cache, new), len(cache.find(old))) == (2, 1)
    assert cache.find([3, 9]) == [BLOCK]
