"""Counts how many of chitchat's ratings are usable, before a model learns from them.

The rating form shows 5/5/5 until somebody changes it, so 5/5/5 says nothing. And a
conversation without a reply has nothing to rate. Few conversations remain, and almost
all of them are linked to each other by shared speakers.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

from gptjax.data.chitchat import RATING_NAMES, ChitchatConversation

DEFAULT = dict.fromkeys(RATING_NAMES, 5)
MIN_TURNS = 4


def is_usable(conversation: ChitchatConversation) -> bool:
    """Whether it has 4 turns or more, two speakers, and a rating other than 5/5/5."""
    return (
        conversation.ratings is not None
        and conversation.ratings != DEFAULT
        and len(conversation.turns) >= MIN_TURNS
        and len(conversation.speakers) == 2
    )


def audit_ratings(
    conversations: Sequence[ChitchatConversation], assign_split: Callable[[str], str]
) -> dict:
    """Counts and statistics as JSON values; at least one conversation must be usable.

    `assign_split` maps an id to 'train', 'validation' or 'test'.
    """
    rated = [c for c in conversations if c.ratings is not None]
    usable = [c for c in conversations if is_usable(c)]
    alone = [c for c in conversations if len(c.speakers) < 2]
    scores = np.array(
        [[c.ratings[name] for name in RATING_NAMES] for c in usable], float
    )
    sums = scores.sum(axis=1)
    by_name = lambda row: dict(zip(RATING_NAMES, row.round(3).tolist(), strict=True))
    components = link_by_people(usable)
    by_split = defaultdict(list)
    for conversation in usable:
        by_split[assign_split(conversation.id)].append(conversation)
    test = by_split.get('test', [])
    trained_people = {p for c in by_split.get('train', []) for p in c.speakers}
    lengths = dict(
        turns=[len(c.turns) for c in usable],
        characters=[c.characters for c in usable],
        words=[sum(len(text.split()) for _, text in c.turns) for c in usable],
    )
    return dict(
        conversations=len(conversations),
        unrated=len(conversations) - len(rated),
        rated=len(rated),
        default=sum(c.ratings == DEFAULT for c in rated),
        no_reply=len(alone),
        no_reply_rated=sum(c.ratings is not None for c in alone),
        no_reply_rated_not_default=sum(
            c.ratings is not None and c.ratings != DEFAULT for c in alone
        ),
        short=sum(
            len(c.speakers) == 2 and len(c.turns) < MIN_TURNS for c in conversations
        ),
        usable=len(usable),
        usable_splits={split: len(group) for split, group in by_split.items()},
        all_tens=int((scores == 10).all(axis=1).sum()),
        all_three_equal=int((np.ptp(scores, axis=1) == 0).sum()),
        mean=by_name(scores.mean(axis=0)),
        std=by_name(scores.std(axis=0)),
        correlation={
            f'{one}, {other}': _correlation(scores[:, i], scores[:, j])
            for (i, one), (j, other) in combinations(enumerate(RATING_NAMES), 2)
        },
        people=len({person for c in usable for person in c.speakers}),
        components=len(components),
        largest_component=max(map(len, components), default=0),
        test_conversations=len(test),
        test_sharing_a_person=sum(bool(c.speakers & trained_people) for c in test),
        test_sharing_both=sum(c.speakers <= trained_people for c in test),
        pairs=math.comb(len(usable), 2),
        equal_pairs=sum(math.comb(n, 2) for n in Counter(sums.tolist()).values()),
        pair_accuracy_of_length={
            name: round(pair_accuracy(np.array(values, float), sums), 3)
            for name, values in lengths.items()
        },
    )


def link_by_people(
    conversations: Sequence[ChitchatConversation],
) -> list[list[ChitchatConversation]]:
    """Groups conversations into components linked by people, directly or not.

    Conversations of a-b, b-c and d-e → [a-b, b-c], [d-e]
    """
    parent = {}

    def root(person):
        while parent.setdefault(person, person) != person:
            parent[person] = parent[parent[person]]
            person = parent[person]
        return person

    for conversation in conversations:
        first, *others = conversation.speakers
        for other in others:
            parent[root(other)] = root(first)
    groups = defaultdict(list)
    for conversation in conversations:
        groups[root(next(iter(conversation.speakers)))].append(conversation)
    return list(groups.values())


def pair_accuracy(scores_N: np.ndarray, values_N: np.ndarray) -> float:
    """The share of pairs of unequal value in which the better one has a higher score.

    Equal scores count half; nan if all values are equal.
    """
    better_NN = values_N[:, None] > values_N
    difference_NN = scores_N[:, None] - scores_N
    right_NN = (difference_NN > 0) + 0.5 * (difference_NN == 0)
    pairs = better_NN.sum()
    return float((right_NN * better_NN).sum() / pairs) if pairs else float('nan')


def describe_audit(audit: dict) -> str:
    lines = [f'{audit[name]:>8,}  {label}' for name, label in audit_labels(audit)]
    length = ', '.join(
        f'{value:.3f} by {name}'
        for name, value in audit['pair_accuracy_of_length'].items()
    )
    return '\n'.join(
        ['ratings of chitchat', *lines, f'  pair accuracy of length alone: {length}']
    )


def audit_labels(audit: dict) -> list[tuple[str, str]]:
    """(key of the audit, what it counts) of the counts to show, in order."""
    held_out = audit['test_conversations']
    return [
        ('conversations', 'conversations'),
        ('unrated', 'without a rating'),
        ('default', 'rated 5/5/5, the default'),
        ('no_reply', 'without a reply (one speaker)'),
        ('no_reply_rated', 'without a reply, but rated'),
        ('usable', 'usable: 4 turns or more, two speakers, not the default'),
        ('all_tens', 'usable ones rated 10/10/10'),
        ('people', 'people in the usable ones'),
        ('largest_component', 'usable ones linked by shared people into one component'),
        ('test_sharing_a_person', f'of {held_out} for the test share a person with '
         'training: a split by conversation leaks speakers'),
        ('equal_pairs', f'of {audit["pairs"]:,} pairs have equal sums of ratings'),
    ]  # fmt: skip


def _correlation(left, right) -> float | None:
    """Pearson's correlation; None if one of them is constant."""
    if not len(left) or not left.std() or not right.std():
        return None
    return round(float(np.corrcoef(left, right)[0, 1]), 3)
