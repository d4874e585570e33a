"""Losses of the reward model compared with closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.post.objectives import reward_losses
from tests import helpers


def array(*rows):
    return jnp.array(rows, jnp.float32)


def softplus(x):
    return math.log(1 + math.exp(x))


def test_equal_scores_cost_ln_2_a_pair():
    values = array([3, 1, 2], [1, 1, 0])
    loss, metrics = reward_losses.pairwise(jnp.full((2, 3), 0.7), values)
    # The rows have three pairs and two, as two values of the second row are equal.
    assert metrics['tokens'] == 5
    assert loss == pytest.approx(5 * math.log(2), rel=1e-6)
    assert metrics['accuracy'] == 2.5  # a tie counts 1/2
    assert metrics['reward'] == pytest.approx(5 * 0.7)
    assert metrics['reward_gap'] == 0
    gradient = jax.grad(lambda s: reward_losses.pairwise(s, array([1, 0]))[0])
    np.testing.assert_allclose(gradient(array([2, 2])), [[-0.5, 0.5]], rtol=1e-6)


def test_pairwise_of_three_is_the_sum_over_pairs():
    scores, values = array([0.3, -1.0, 2.0]), array([10, 5, 1])
    loss, metrics = reward_losses.pairwise(scores, values)
    pairs = [(0.3, -1.0), (0.3, 2.0), (-1.0, 2.0)]
    expected = sum(softplus(worse - better) for better, worse in pairs)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert metrics['accuracy'] == 1
    assert metrics['reward_gap'] == pytest.approx(1.3 - 1.7 - 3.0, rel=1e-6)


def test_margin_moves_the_difference_by_the_difference_of_values():
    scores, values = array([1.5, 0.5]), array([2.0, -1.0])
    loss, metrics = reward_losses.pairwise(scores, values, margin=0.5)
    # The margin leaves 1 - 0.5 * 3 = -0.5 of the difference.
    assert loss == pytest.approx(softplus(0.5), rel=1e-6)
    assert metrics['loss'] == loss
    apart, _ = reward_losses.pairwise(array([2.0, 0.5]), values, margin=0.5)
    assert apart == pytest.approx(math.log(2), rel=1e-6)


def test_centring_moves_the_mean_to_zero_and_is_not_in_the_metric():
    values = array([1, 0])
    plain, _ = reward_losses.pairwise(array([2.0, 1.0]), values)
    loss, metrics = reward_losses.pairwise(array([2.0, 1.0]), values, centring=0.1)
    assert loss - plain == pytest.approx(0.1 * 9, rel=1e-5)
    assert metrics['loss'] == plain

    def level(shift, centring):
        scores = array([0.5, -0.5]) + shift
        return reward_losses.pairwise(scores, values, centring=centring)[0]

    assert jax.grad(level)(3.0, 0.0) == 0
    assert jax.grad(level)(3.0, 0.1) == pytest.approx(0.1 * 8 * 3, rel=1e-5)
    assert jax.grad(level)(0.0, 0.1) == 0


def test_pairwise_of_equal_values_and_of_large_differences():
    loss, metrics = reward_losses.pairwise(array([3.0, 1.0]), array([5, 5]), 1.0, 1.0)
    assert loss == 0 and metrics['tokens'] == 0
    values = array([1, 0])
    loss, _ = reward_losses.pairwise(array([-300.0, 300.0]), values)
    assert loss == 600
    gradient = jax.grad(lambda s: reward_losses.pairwise(s, values)[0])
    np.testing.assert_allclose(gradient(array([-300.0, 300.0])), [[-1.0, 1.0]])


def test_parts_of_a_batch_add_up():
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    values = jnp.asarray(rng.integers(3, size=(4, 3)), jnp.float32)
    for loss_of in (
        lambda s, v: reward_losses.pairwise(s, v, 0.3, 0.01),
        reward_losses.regression,
        reward_losses.binary,
    ):
        whole = loss_of(scores, values)
        parts = [loss_of(scores[i : i + 1], values[i : i + 1]) for i in range(4)]
        total = jax.tree.map(lambda *x: sum(x), *parts)
        helpers.assert_trees_close(whole, total, rtol=1e-5)


def test_regression_is_half_the_squared_error():
    loss, metrics = reward_losses.regression(array([1.0, -2.0]), array([0.0, 1.0]))
    assert loss == (1 + 9) / 2
    assert metrics['tokens'] == 2 and metrics['reward'] == -1
    gradient = jax.grad(lambda s: reward_losses.regression(s, array([0, 1]))[0])
    np.testing.assert_allclose(gradient(array([1.0, -2.0])), [[1.0, -3.0]])


def test_binary_is_the_cross_entropy_of_a_coin():
    loss, metrics = reward_losses.binary(array([0.0, 0.0]), array([0, 1]))
    assert loss == pytest.approx(2 * math.log(2), rel=1e-6)
    assert metrics['accuracy'] == 1
    scores, values = array([2.0, -1.0, 3.0]), array([1, 1, 0])
    loss, metrics = reward_losses.binary(scores, values)
    sigma = lambda x: 1 / (1 + math.exp(-x))
    assert loss == pytest.approx(softplus(-2) + softplus(1) + softplus(3), rel=1e-6)
    assert metrics['accuracy'] == 1 and metrics['tokens'] == 3
    gradient = jax.grad(lambda s: reward_losses.binary(s, values)[0])(scores)
    np.testing.assert_allclose(
        gradient[0], [sigma(2) - 1, sigma(-1) - 1, sigma(3)], rtol=1e-5
    )


def test_a_group_counts_once_whatever_its_size():
    """1 / C(K, 2) for each pair; K = 2 is a pair, to the bit; NaN is no reply."""
    nan = float('nan')
    scores = array([0.3, -1.0, 2.0], [0.5, 1.5, 9.0])
    values = array([3, 2, 1], [1, 0, nan])
    loss, metrics = reward_losses.pairwise(scores, values, 0.5, by_group=True)
    three, _ = reward_losses.pairwise(scores[:1], values[:1], 0.5)
    pair, _ = reward_losses.pairwise(scores[1:, :2], values[1:, :2], 0.5)
    alone, _ = reward_losses.pairwise(
        scores[1:, :2], values[1:, :2], 0.5, by_group=True
    )
    assert alone == pair
    assert loss == pytest.approx(float(three) / 3 + float(pair), rel=1e-6)
    assert metrics['tokens'] == 2
    gradient = jax.grad(
        lambda s: reward_losses.pairwise(s, values, 0.5, by_group=True)[0]
    )(scores)
    assert np.isfinite(gradient).all() and gradient[1, 2] == 0


def test_margins_of_pairs():
    """-ln sigmoid(r_c - r_r - m); a margin of 0 is none, to the bit."""
    scores, values = array([2.0, 0.5], [1.0, 1.0]), array([1, 0], [1, 0])
    plain, _ = reward_losses.pairwise(scores, values)
    zero, _ = reward_losses.pairwise(scores, values, margins_BG=jnp.zeros((2, 2)))
    assert zero == plain
    margins = array([3, 0], [0.5, 0])
    loss, _ = reward_losses.pairwise(scores, values, margins_BG=margins)
    assert loss == pytest.approx(softplus(3 - 1.5) + softplus(0.5), rel=1e-6)
