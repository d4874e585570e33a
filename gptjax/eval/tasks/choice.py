"""Multiple choice by likelihood: which of the answers would the model write?

Three rules, as an answer with more tokens is less likely whatever it says:

    accuracy         the greatest ln P(answer | prompt)
    accuracy_tokens  the greatest ln P / tokens of the answer
    accuracy_bytes   the greatest ln P / UTF-8 bytes of the answer, which no
                     tokenizer changes (`acc_norm` of lm-evaluation-harness)

Beside each stands chance, and the same rule on ln P(answer) without the prompt: what
is above that the model has from reading the question.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptjax.eval.bootstrap import mean_of


class Choices(NamedTuple):
    """The scored answers of one item.

    logprobs, without_prompt: ln P of each answer, given the prompt and given BOS.
    tokens, num_bytes: the length of each answer.
    right: the place of the right one.
    """

    logprobs: Sequence[float]
    without_prompt: Sequence[float]
    tokens: Sequence[int]
    num_bytes: Sequence[int]
    right: int


def measure(items: Sequence[Choices]) -> dict[str, np.ndarray]:
    """Statistics of every item, (N,) float64 by name."""
    columns = dict(items=np.ones(len(items)))
    for prefix, logprobs_of in (
        ('', lambda item: item.logprobs),
        ('blind_', lambda item: item.without_prompt),
    ):
        for rule, lengths_of in (
            ('accuracy', lambda item: np.ones(len(item.tokens))),
            ('accuracy_tokens', lambda item: item.tokens),
            ('accuracy_bytes', lambda item: item.num_bytes),
        ):
            columns[prefix + rule] = np.array(
                [
                    _chosen(logprobs_of(item), lengths_of(item)) == item.right
                    for item in items
                ],
                np.float64,
            )
    columns['chance'] = np.array([1 / len(item.tokens) for item in items], np.float64)
    return columns


def _chosen(logprobs, lengths) -> int:
    """The likeliest answer by length, the first of equals; length 1 at least."""
    return int(np.argmax(np.asarray(logprobs) / np.maximum(lengths, 1)))


RULES = ('accuracy', 'accuracy_tokens', 'accuracy_bytes')
FIGURES = {rule: mean_of(rule) for rule in RULES}
BLIND = {rule: mean_of(f'blind_{rule}') for rule in RULES}
