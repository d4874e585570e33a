"""One problem, and the part that it belongs to."""

from typing import Any, NamedTuple

from gptjax.core.hashing import hash_fraction

PARTS = ('train', 'validation', 'held_out')


class Problem(NamedTuple):
    """One problem.

    id: names its content: equal problems have equal ids.
    messages: the prompt, dicts of `role` and `content`.
    answer: a right reply; '' where none is known.
    meta: what a verifier or a reward function wants to know besides.
    """

    id: str
    messages: tuple[dict, ...]
    answer: str = ''
    meta: Any = None


def part_of(problem_id: str, fraction: float) -> str:
    """'held_out', 'validation' or 'train', by the problem's content.

    Not by the hash that splits documents: demonstrations are split by that one too,
    and would all be on one side of it.
    """
    place = hash_fraction('part of the task', problem_id)
    if place < fraction:
        return 'held_out'
    return 'validation' if place < 2 * fraction else 'train'
