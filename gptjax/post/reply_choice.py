"""Which of several replies to one problem are kept, and which make a pair."""

from collections.abc import Sequence
from typing import NamedTuple

from gptjax.core.hashing import hash_fraction


class Drawn(NamedTuple):
    """A reply: its text, its score, and whether it came to its end by itself."""

    text: str
    score: float
    ended: bool


class Choice(NamedTuple):
    """What is kept of a problem's replies.

    kept: texts, all different.
    pairs: (better, worse).
    why: there is no pair; '' where there is one.
    """

    kept: list[str]
    pairs: list[tuple[str, str]]
    why: str


def right_and_wrong(replies: Sequence[Drawn], keep: int, pairs: int) -> Choice:
    """Keeps right replies, all different, in the order they were drawn.

    Only replies that came to their end count: another would teach not to stop.

    Args:
        replies: to one problem; right ones have a score of 1.
        keep: how many at most.
        pairs: how many at most.
    """
    ended = [reply for reply in replies if reply.ended]
    right = list(dict.fromkeys(r.text for r in ended if r.score >= 1))
    wrong = list(dict.fromkeys(r.text for r in ended if r.score < 1))
    if not right or not wrong:
        why = 'all right' if right else 'all wrong' if wrong else 'none ended'
        return Choice(right[:keep], [], why)
    number = min(pairs, max(len(right), len(wrong)))
    chosen = [(right[k % len(right)], wrong[k % len(wrong)]) for k in range(number)]
    return Choice(right[:keep], chosen, '')


def best_and_worst(replies: Sequence[Drawn], keep: int, pairs: int) -> Choice:
    """Keeps the best replies; pairs the best with the worst, the next with the next.

    Arguments are those of `right_and_wrong`; where scores are equal the reply that
    was drawn first stands before the others.
    """
    scores = {}
    for reply in replies:
        if reply.ended:
            scores.setdefault(reply.text, reply.score)
    ranked = sorted(scores, key=lambda text: -scores[text])
    if not ranked:
        return Choice([], [], 'none ended')
    ends = zip(ranked[: len(ranked) // 2], reversed(ranked), strict=False)
    chosen = [ends for ends in ends if scores[ends[0]] > scores[ends[1]]]
    return Choice(ranked[:keep], chosen[:pairs], '' if chosen else 'all equal')


def turned(share: float, *words) -> bool:
    """Whether a pair is turned round, by a hash of the words."""
    return hash_fraction(*words) < share
