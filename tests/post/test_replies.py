"""Masks of replies, by hand."""

import numpy as np

from gptjax.post.objectives import reply_sums

# Prompts of 3, 1, 2 and 2 tokens, replies of 2, 4, 0 and 3: six tokens, five targets.
MASK = np.array(
    [
        [0, 0, 1, 1, 0],
        [1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0],
    ]
)


def test_reply_mask():
    mask_BT = reply_sums.reply_mask([3, 1, 2, 2], [2, 4, 0, 3], 5)
    assert mask_BT.dtype == bool
    np.testing.assert_array_equal(mask_BT, MASK)


def test_lengths_and_last_places():
    np.testing.assert_array_equal(reply_sums.reply_lengths(MASK), [2, 4, 0, 3])
    last_BT = reply_sums.last_places(MASK)
    np.testing.assert_array_equal(np.argwhere(last_BT), [[0, 3], [1, 3], [3, 3]])


def test_a_reply_in_two_parts():
    mask_BT = np.array([[1, 0, 1, 0]])
    np.testing.assert_array_equal(reply_sums.last_places(mask_BT), [[0, 0, 1, 0]])
    assert reply_sums.reply_lengths(mask_BT)[0] == 2


def test_ended_reads_the_last_token_alone():
    stop, other, pad = 7, 5, 7  # padding may have the id of a stop token
    targets_BT = np.full(MASK.shape, pad)
    targets_BT[0, 2:4] = other, stop
    targets_BT[1, :4] = other, stop, other, other  # a stop token within, truncated
    targets_BT[3, 1:4] = other, other, 9
    ended = lambda *stops: list(reply_sums.ended(targets_BT, MASK, stops))
    assert ended(stop) == [True, False, False, False]
    assert ended(stop, 9) == [True, False, False, True]


def test_sums_and_means():
    x_BT = np.where(MASK, np.arange(5), -np.inf)  # what is left out may be anything
    np.testing.assert_array_equal(reply_sums.reply_sums(x_BT, MASK), [5, 6, 0, 6])
    np.testing.assert_array_equal(reply_sums.reply_means(x_BT, MASK), [2.5, 1.5, 0, 2])
