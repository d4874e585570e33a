"""What chitchat's ratings are worth: counted before anything is learned from them.

A rating of 5/5/5 is what the form shows before anybody touches it, and a conversation
without a reply has nothing to rate. What is left is small, and nearly all of it hangs
together by the people who take part.
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
    """Whether it has at least 4 turns, two speakers and a rating not the default."""
    return (
        conversation.ratings is not None
        and conversation.ratings != DEFAULT
        and len(conversation.turns) >= MIN_TURNS
        and len(conversation.speakers) == 2
    )


def audit_ratings(
    conversations: Sequence[ChitchatConversation], assign_split: Callable[[str], str]
) -> dict:
    """Counts and statistics of all conversations, of which one is usable; JSON values.

    `assign_split` gives 'train', 'validation' or 'test' for an id.
    """
    rated = [c for c in conversations if c.ratings is not None]
    kept = [c for c in conversations if is_usable(c)]
    alone = [c for c in conversations if len(c.speakers) < 2]
    scores = np.array([[c.ratings[name] for name in RATING_NAMES] for c in kept], float)
    sums = scores.sum(axis=1)
    by_name = lambda row: dict(zip(RATING_NAMES, row.round(3).tolist(), strict=True))
    groups = link_by_people(kept)
    lengths = dict(
        turns=[len(c.turns) for c in kept],
        characters=[c.characters for c in kept],
        words=[sum(len(text.split()) for _, text in c.turns) for c in kept],
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
        usable=len(kept),
        usable_splits=dict(Counter(assign_split(c.id) for c in kept)),
        all_tens=int((scores == 10).all(axis=1).sum()),
        all_three_equal=int((np.ptp(scores, axis=1) == 0).sum()),
        mean=by_name(scores.mean(axis=0)),
        std=by_name(scores.std(axis=0)),
        correlation={
            f'{one}, {other}': _correlation(scores[:, i], scores[:, j])
            for (i, one), (j, other) in combinations(enumerate(RATING_NAMES), 2)
        },
        people=len({person for c in kept for person in c.speakers}),
        components=len(groups),
        largest_component=max(map(len, groups), default=0),
        **_shared_people(kept, assign_split),
        pairs=math.comb(len(kept), 2),
        equal_pairs=sum(math.comb(n, 2) for n in Counter(sums.tolist()).values()),
        pair_accuracy_of_length={
            name: round(pair_accuracy(np.array(values, float), sums), 3)
            for name, values in lengths.items()
        },
    )


def link_by_people(
    conversations: Sequence[ChitchatConversation],
) -> list[list[ChitchatConversation]]:
    """The conversations in components: linked by a person, directly or not."""
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
    """The share of pairs of unequal value whose better one has the higher score.

    Equal scores count half; nan where all values are equal.
    """
    better_NN = values_N[:, None] > values_N
    difference_NN = scores_N[:, None] - scores_N
    right_NN = (difference_NN > 0) + 0.5 * (difference_NN == 0)
    pairs = better_NN.sum()
    return float((right_NN * better_NN).sum() / pairs) if pairs else float('nan')


def describe_audit(audit: dict) -> str:
    """The audit as lines for the screen."""
    lines = [f'{audit[name]:>8,}  {label}' for name, label in audit_labels(audit)]
    length = ', '.join(
        f'{value:.3f} by {name}'
        for name, value in audit['pair_accuracy_of_length'].items()
    )
    return '\n'.join(['ratings of chitchat', *lines, f'  length alone tells {length}'])


def audit_labels(audit: dict) -> list[tuple[str, str]]:
    """(field, what it counts) of the counts that a reader should see, in order."""
    held_out = audit['test_conversations']
    return [
        ('conversations', 'conversations'),
        ('unrated', 'without a rating'),
        ('default', 'rated 5/5/5, the default'),
        ('no_reply', 'without a reply (one speaker)'),
        ('no_reply_rated', 'of these rated all the same'),
        ('usable', 'usable: 4 turns or more, two speakers, not the default'),
        ('all_tens', 'of these 10/10/10'),
        ('people', 'people in the usable ones'),
        ('largest_component', 'usable ones linked by shared people into one component'),
        ('test_sharing_a_person', f'of {held_out} for the test share a person with '
         'training: a split by conversation leaks speakers'),
        ('equal_pairs', f'of {audit["pairs"]:,} pairs have equal sums of ratings'),
    ]  # fmt: skip


def _shared_people(kept, assign_split) -> dict:
    """How many of the test's conversations have people that training has too."""
    known = {p for c in kept if assign_split(c.id) == 'train' for p in c.speakers}
    test = [c for c in kept if assign_split(c.id) == 'test']
    return dict(
        test_conversations=len(test),
        test_sharing_a_person=sum(bool(c.speakers & known) for c in test),
        test_sharing_both=sum(c.speakers <= known for c in test),
    )


def _correlation(left, right) -> float | None:
    """Pearson's; None where one of them is constant."""
    if not len(left) or not left.std() or not right.std():
        return None
    return round(float(np.corrcoef(left, right)[0, 1]), 3)
