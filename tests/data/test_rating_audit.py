"""The audit of chitchat's ratings, on conversations made by hand."""

import numpy as np
import pytest

from gptjax.data import rating_audit
from gptjax.data.chitchat import ChitchatConversation, read_chitchat
from gptjax.data.rating_audit import (
    audit_ratings,
    is_usable,
    link_by_people,
    pair_accuracy,
)
from gptjax.data.ratings import assign_three_way_split


def conversation(name, people, ratings, turns=4, words=2):
    """Messages by `people` in turn, each with the given number of words."""
    said = tuple((people[i % len(people)], 'so ' * words) for i in range(turns))
    names = ('witty', 'interesting', 'upbeat')
    return ChitchatConversation(
        name, said, ratings and dict(zip(names, ratings, strict=True))
    )


SOME = [
    conversation('a', 'xy', (1, 2, 3)),
    conversation('b', 'yz', (9, 9, 9), words=20),
    conversation('c', 'uv', (9, 9, 9), words=3),
    conversation('default', 'xy', (5, 5, 5)),
    conversation('unrated', 'xy', None),
    conversation('short', 'xy', (1, 1, 1), turns=3),
    conversation('alone', 'x', (1, 1, 1), turns=1),
    conversation('alone default', 'x', (5, 5, 5), turns=1),
]


def test_counts_and_description():
    assert [c.id for c in SOME if is_usable(c)] == ['a', 'b', 'c']
    found = audit_ratings(SOME, lambda name: 'test' if name in ('b', 'c') else 'train')
    expected = dict(
        conversations=8, unrated=1, rated=7, default=2,
        no_reply=2, no_reply_rated=2, no_reply_rated_not_default=1, short=1,
        usable=3, usable_splits=dict(train=1, test=2),
        all_tens=0, all_three_equal=2, people=5, components=2, largest_component=2,
        test_conversations=2, test_sharing_a_person=1, test_sharing_both=0,
        pairs=3, equal_pairs=1,
    )  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert found['mean'] == dict(witty=6.333, interesting=6.667, upbeat=7.0)
    # In the pairs (b, a) and (c, a) the longer one is better; turns do not differ.
    assert found['pair_accuracy_of_length'] == dict(turns=0.5, characters=1, words=1)
    description = rating_audit.describe_audit(found)
    for line in (
        '2  rated 5/5/5, the default',
        '1  of 2 for the test share a person with training',
        '1  of 3 pairs have equal sums',
        'pair accuracy of length alone: 0.500 by turns, 1.000 by characters',
    ):
        assert line in description


def test_linked_by_people_directly_or_not():
    chain = [conversation(n, p, (1, 1, 1)) for n, p in (('1', 'ab'), ('2', 'cd'))]
    assert sorted(map(len, link_by_people(chain))) == [1, 1]
    chain.append(conversation('3', 'bc', (1, 1, 1)))
    assert list(map(len, link_by_people(chain))) == [3]


def test_pair_accuracy():
    values = np.array([3.0, 2.0, 1.0, 1.0])
    assert pair_accuracy(values, values) == 1
    assert pair_accuracy(-values, values) == 0
    assert pair_accuracy(np.zeros(4), values) == 0.5
    # There are five pairs: (0, 1) is wrong, and two of the other four are ties.
    scores = np.array([1.0, 2.0, 1.0, 0.0])
    assert pair_accuracy(scores, values) == pytest.approx((0 + 0.5 + 1 + 1 + 1) / 5)
    assert np.isnan(pair_accuracy(scores, np.ones(4)))


@pytest.mark.slow
def test_chitchat_itself(prepared_run):
    # The numbers of chitchat-dataset 0.9.0; a new release may change them.
    conversations = read_chitchat(prepared_run / 'datasets')
    found = audit_ratings(
        conversations, lambda name: assign_three_way_split(name, 0.15, 0.1)
    )
    expected = dict(
        conversations=7168, unrated=1180, default=2920, no_reply=3151,
        no_reply_rated=2284, usable=2097, people=800, largest_component=2050,
        test_conversations=300, test_sharing_a_person=292, pairs=2_197_656,
        equal_pairs=269_278,
    )  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert found['pair_accuracy_of_length'] == dict(
        turns=0.65, characters=0.662, words=0.663
    )
    first = next(c for c in conversations if c.ratings)
    assert all(text == text.strip() and text for _, text in first.turns)
    speakers = [speaker for speaker, _ in first.turns]
    assert all(a != b for a, b in zip(speakers, speakers[1:], strict=False))
