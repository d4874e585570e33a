"""Sums over replies, weights of tokens, and normalisers, by hand."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.post.objectives import reply_tokens

MASK = np.array([[0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])  # 3, 1 and no tokens
IN_TWO = np.array([[1, 0, 1, 0]])  # a reply in two parts
LOSS = np.float32([[9, 1, 2, 3], [10, 9, 9, 9], [9, 9, 9, 9]])


def mean(weights_BT, counts_B, loss_BT=LOSS):
    return float(jnp.sum(weights_BT * loss_BT) / jnp.sum(counts_B))


def test_lengths_and_last_tokens():
    np.testing.assert_array_equal(reply_tokens.reply_lengths(MASK), [3, 1, 0])
    last_BT = reply_tokens.last_token_mask(MASK)
    np.testing.assert_array_equal(np.argwhere(last_BT), [[0, 3], [1, 0]])
    assert reply_tokens.reply_lengths(IN_TWO)[0] == 2
    np.testing.assert_array_equal(reply_tokens.last_token_mask(IN_TWO), [[0, 0, 1, 0]])


def test_sums_and_means():
    x_BT = np.where(MASK, np.arange(4), -np.inf)  # outside the mask, any value
    np.testing.assert_array_equal(reply_tokens.reply_sums(x_BT, MASK), [6, 0, 0])
    np.testing.assert_array_equal(reply_tokens.reply_means(x_BT, MASK), [2, 0, 0])


@pytest.mark.parametrize(
    'compute_weights, weights, counts, expected',
    (
        (reply_tokens.token_weights, [1, 1], [3, 1, 0], 16 / 4),
        (reply_tokens.sequence_weights, [1 / 3, 1], [1, 1, 0], (6 / 3 + 10) / 2),
        (
            partial(reply_tokens.constant_weights, length=8),
            *([1 / 8, 1 / 8], [1, 1, 0], (6 / 8 + 10 / 8) / 2),
        ),
    ),
)
def test_weights(compute_weights, weights, counts, expected):
    weights_BT, counts_B = compute_weights(MASK)
    np.testing.assert_allclose(weights_BT, MASK * np.array([*weights, 0])[:, None])
    np.testing.assert_array_equal(counts_B, counts)
    assert mean(weights_BT, counts_B) == pytest.approx(expected)


def test_a_second_loss_is_a_mean_of_its_own():
    """PPO-ptx: text and replies in one step, divided by the same number."""
    text_BT = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    text_loss_BT = np.float32([[1, 2, 3, 4], [5, 6, 7, 8]])
    for compute_weights in (reply_tokens.token_weights, reply_tokens.sequence_weights):
        _, counts_B = compute_weights(MASK)
        second_BT = reply_tokens.second_loss_weights(text_BT, counts_B)
        assert mean(second_BT, counts_B, text_loss_BT) == pytest.approx(21 / 6)
    assert not np.any(reply_tokens.second_loss_weights(0 * text_BT, counts_B))


def test_sums_are_what_the_step_divides():
    weights_BT, counts_B = reply_tokens.sequence_weights(MASK)
    total, metrics = reply_tokens.sum_losses(
        LOSS, dict(x=LOSS), MASK, weights_BT, counts_B
    )
    assert float(total) == pytest.approx(2 + 10)
    assert {name: float(value) for name, value in metrics.items()} == dict(
        x=16, reply_tokens=4, tokens=2
    )
    # The step divides by 'tokens'; then the metric is the mean over reply tokens.
    divided = {name: value / metrics['tokens'] for name, value in metrics.items()}
    assert reply_tokens.metrics_per_token(divided, ['x'])['x'] == 4
    empty = dict(x=0.0, reply_tokens=0.0)
    assert reply_tokens.metrics_per_token(empty, ['x'])['x'] == 0
    # Losses outside the mask are ignored.
    loss_BT = np.where(MASK, LOSS, np.nan)
    total, metrics = reply_tokens.sum_losses(
        loss_BT, dict(x=loss_BT), MASK, *reply_tokens.token_weights(MASK)
    )
    assert (float(total), float(metrics['x'])) == (16, 16)
