"""The requests that `bench decode` measures with: ragged, and always the same."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Workload(NamedTuple):
    """Requests that come all at once.

    prompts: token ids of each.
    lengths: tokens of each reply.
    batch: requests that may run at once.
    """

    prompts: list[list[int]]
    lengths: list[int]
    batch: int


def make_workload(
    requests: int,
    context: int,
    vocab_size: int,
    slots: int | None = None,
    text: Sequence[int] = (),
) -> Workload:
    """Lengths spread evenly over their ranges, in random order.

    Prompts are from 1/32 to 1/4 of the context, replies from 1/16 to 1/2: of 512,
    from 16 to 128 and from 32 to 256 tokens. One request has the middle of both.

    Args:
        requests: how many.
        context: tokens that prompt and reply may have together.
        vocab_size: of the model.
        slots: requests that may run at once; None: all.
        text: token ids, many more than a prompt has, of which the prompts are pieces;
            of none: random tokens.
    """
    rng = np.random.default_rng(requests)
    shares = (np.arange(requests) + 0.5) / requests
    spread = lambda low, high: rng.permutation(low + shares * (high - low)).astype(int)
    prompts = [
        rng.integers(0, vocab_size, max(1, length)).tolist()
        for length in spread(context / 32, context / 4)
    ]
    lengths = [max(1, int(n)) for n in spread(context / 16, context / 2)]
    if text:
        starts = rng.integers(max(1, len(text) - context // 4), size=requests)
        prompts = [
            list(text[start : start + len(prompt)])
            for start, prompt in zip(starts, prompts, strict=True)
        ]
    return Workload(prompts, lengths, min(requests, slots or requests))
