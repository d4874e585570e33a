"""Which conversations are compared in a step, and which of their tokens are read."""

import numpy as np
import pytest

from gptjax.data.chat_template import encode_conversation
from gptjax.data.comparisons import (
    EncodedConversation,
    choose_groups,
    encode_end,
    encode_ratings,
    make_comparison_arrays,
)
from gptjax.data.ratings import RatedConversation
from gptjax.eval.rating_baselines import draw_pairs


def messages(*texts):
    roles = ('user', 'assistant')
    first = len(texts) % 2  # the last message is the assistant's
    return [
        dict(role=roles[(first + place) % 2], content=text)
        for place, text in enumerate(texts)
    ]


@pytest.mark.parametrize('template', ('text', 'turns'))
def test_the_last_turns_that_fit_are_read(run, template):
    said = messages('the cat sat', 'on a mat', 'and then?', 'it ran off')
    whole, _ = encode_conversation(said, run.tokenizer, template)
    end, _ = encode_conversation(said[2:], run.tokenizer, template)
    for context in range(len(end), len(whole) + 1):
        found = encode_end(said, run.tokenizer, template, context)
        assert len(found.tokens) <= context and not found.cut
        assert found.tokens[0] == run.tokenizer.bos_id
        kept, _ = encode_conversation(said[found.dropped :], run.tokenizer, template)
        assert found.tokens.tolist() == kept
    assert found.dropped == 0  # the whole conversation fits
    assert encode_end(said, run.tokenizer, template, len(end)).dropped == 2


def test_of_a_long_last_turn_the_end_is_read(run):
    said = messages('hi', 'the cat sat on a mat and then it ran off to see')
    whole, _ = encode_conversation(said, run.tokenizer, 'turns')
    found = encode_end(said, run.tokenizer, 'turns', 8)
    assert found.tokens.tolist() == [run.tokenizer.bos_id, *whole[-7:]]
    assert found.tokens[-1] == run.tokenizer.specials['<|end|>']
    assert (found.dropped, found.cut) == (1, True)


def test_conversations_by_set(run):
    texts = ('a cat', 'a dog', 'a mat', 'the dog')
    of_pairs = [
        RatedConversation(str(n), f'pair {n // 2}', messages('see', text), n, 9, [])
        for n, text in enumerate(texts)
    ]
    found = encode_ratings(of_pairs, run.tokenizer, 'text', 16)
    assert found.sets.tolist() == [[0, 1], [2, 3]]
    assert found.values.tolist() == [0, 1, 2, 3] and found.values.dtype == np.float32
    of_one = [rated._replace(set='') for rated in of_pairs]
    found = encode_ratings(of_one, run.tokenizer, 'text', 16)
    assert found.sets.tolist() == [[0, 1, 2, 3]]


def test_sets_of_several_sizes(run):
    names = [('a', 0, 2.0), ('a', 1, 0.0), ('b', 0, 0.0), ('b', 1, 0.0), ('b', 2, 0.0)]
    rated = [
        RatedConversation(f'{n}', name, messages('see', 'a'), value, 9, [], margin)
        for n, (name, value, margin) in enumerate(names)
    ]
    found = encode_ratings(rated, run.tokenizer, 'text', 16)
    assert found.sets.tolist() == [[0, 1, -1], [2, 3, 4]]
    np.testing.assert_equal(found.values_of(found.sets)[0], [0, 1, np.nan])
    assert found.margins.tolist() == [2, 0, 0, 0, 0]
    assert encode_ratings(rated[1:], run.tokenizer, 'text', 16).margins is None
    pairs = draw_pairs(found.values, found.sets, 99, 0)
    assert sorted(zip(*pairs, strict=True)) == [(1, 0), (3, 2), (4, 2), (4, 3)]


def test_groups_of_one_set_have_each_conversation_once_an_epoch():
    sets = np.arange(20)[None]
    steps = [choose_groups(sets, 2, 5, seed=3, step=step) for step in range(4)]
    assert all(groups.shape == (2, 5) for groups in steps)
    for epoch in (steps[:2], steps[2:]):
        assert sorted(np.concatenate(epoch).ravel()) == list(range(20))
    assert not np.array_equal(steps[0], steps[2])
    np.testing.assert_array_equal(steps[3], choose_groups(sets, 2, 5, 3, 3))
    assert not np.array_equal(steps[0], choose_groups(sets, 2, 5, 4, 0))


def test_groups_of_many_sets_are_the_sets():
    sets = np.arange(12).reshape(6, 2)
    steps = [choose_groups(sets, 4, 2, seed=0, step=step) for step in range(3)]
    drawn = np.concatenate(steps)
    assert all(row in sets.tolist() for row in drawn.tolist())
    for epoch in (drawn[:6], drawn[6:]):
        assert sorted(epoch[:, 0].tolist()) == [0, 2, 4, 6, 8, 10]


def test_arrays():
    encoded = [
        EncodedConversation(np.array(tokens, np.int32), 0, False)
        for tokens in ([1, 5, 6], [1, 7])
    ]
    found = make_comparison_arrays(encoded, np.array([[1, 0, -1]]), 4, pad=9)
    expected = dict(
        inputs=[[[1, 7, 9, 9], [1, 5, 6, 9], [9, 9, 9, 9]]],
        segments=[[[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]],
        positions=[[[0, 1, 2, 3]] * 3],
        last=[[1, 2, 0]],
    )
    for name, array in found.items():
        assert array.dtype == np.int32
        np.testing.assert_array_equal(array, expected[name])
