"""Advantages by hand, over time and within groups."""

import jax
import numpy as np
import pytest

from gptjax.post.objectives import advantages

# The second reply is truncated, the third is empty, the fourth has a gap: tokens that
# the policy did not sample.
MASK = np.array([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 0, 1, 0]])


REWARDS, VALUES = (
    np.random.default_rng(0).normal(size=(2, *MASK.shape)).astype(np.float32)
)


def test_terminal_rewards():
    rewards_BT = advantages.terminal_rewards([2, -1, 5, 3], MASK)
    assert rewards_BT.dtype == np.float32
    expected = np.zeros(MASK.shape)
    expected[0, 3], expected[1, 4], expected[3, 3] = 2, -1, 3
    np.testing.assert_array_equal(rewards_BT, expected)


@pytest.mark.parametrize('gamma, lam', ((1.0, 0.95), (0.9, 0.5), (0.9, 1), (0.9, 0)))
def test_gae(gamma, lam):
    """The sum of (gamma lam)^k delta, over the tokens of each reply."""
    ours_BT, returns_BT = advantages.gae(REWARDS, VALUES, MASK, gamma, lam)
    expected_BT = np.zeros(MASK.shape)
    for row, mask_T in enumerate(MASK):
        places = np.flatnonzero(mask_T)
        rewards, values = REWARDS[row, places], VALUES[row, places]
        deltas = rewards + gamma * np.append(values[1:], 0) - values
        for i, place in enumerate(places):
            decay = (gamma * lam) ** np.arange(len(places) - i)
            expected_BT[row, place] = np.sum(decay * deltas[i:])
    np.testing.assert_allclose(ours_BT, expected_BT, atol=1e-6)
    np.testing.assert_allclose(returns_BT, ours_BT + VALUES * MASK, atol=1e-6)


def test_gae_with_lambda_1_has_the_returns():
    _, returns_BT = advantages.gae(REWARDS, VALUES, MASK, 0.9, 1.0)
    r, expected = REWARDS[3], [0.0] * 5
    expected[:4] = r[0] + 0.9 * r[1] + 0.81 * r[3], r[1] + 0.9 * r[3], 0, r[3]
    np.testing.assert_allclose(returns_BT[3], expected, atol=1e-6)


def test_no_gradient_flows_through_advantages_and_returns():
    total = lambda values_BT: sum(
        x.sum() for x in advantages.gae(REWARDS, values_BT, MASK)
    )
    assert not np.any(jax.grad(total)(VALUES))


def test_whiten():
    kept = MASK != 0
    white_BT = np.asarray(advantages.whiten(REWARDS, MASK))
    assert white_BT[kept].mean() == pytest.approx(0, abs=1e-6)
    assert white_BT[kept].std() == pytest.approx(1, abs=1e-5)
    assert not np.any(white_BT[~kept])
    scaled_BT = np.asarray(advantages.whiten(REWARDS, MASK, shift_mean=False))
    mean = REWARDS[kept].mean()
    np.testing.assert_allclose(scaled_BT[kept], white_BT[kept] + mean, atol=1e-6)


def test_whiten_leaves_equal_numbers_alone():
    ones_BT = np.full(MASK.shape, 0.7, np.float32)
    np.testing.assert_allclose(advantages.whiten(ones_BT, MASK), 0 * ones_BT, atol=1e-6)
    kept_BT = advantages.whiten(ones_BT, MASK, shift_mean=False)
    np.testing.assert_allclose(kept_BT, 0.7 * MASK, atol=1e-6)
    nothing = np.zeros_like(MASK)
    np.testing.assert_array_equal(advantages.whiten(ones_BT, nothing), nothing)


SCORES = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]])


def test_groups_by_hand():
    root = np.sqrt(3)  # one score of four is 1: the standard deviation is sqrt(3) / 4
    for advantage, of_one, of_the_rest in (
        (advantages.grpo, root, root / 3),
        (advantages.dr_grpo, 3 / 4, 1 / 4),
        (advantages.rloo, 1, 1 / 3),
    ):
        expected = [of_one, *[-of_the_rest] * 3]
        expected = [expected, [0] * 4, [*[of_the_rest] * 3, -of_one]]
        np.testing.assert_allclose(advantage(SCORES), expected, rtol=1e-6)


def test_reinforce_and_its_baseline():
    np.testing.assert_allclose(advantages.reinforce([1, 0]), [0.5, -0.5])
    np.testing.assert_allclose(advantages.reinforce([1, 0], baseline=0.2), [0.8, -0.2])
    np.testing.assert_allclose(advantages.reinforce(SCORES).sum(), 0, atol=1e-6)


def test_informative_groups_have_scores_that_differ():
    assert list(advantages.informative(SCORES)) == [True, False, True]
    # Nearly equal scores have no advantage, whether they are large or small.
    near = np.float32([[0.7, 0.7 + 6e-8], [1e6, 1e6 + 1], [0.0, 1e-6], [0.7, 0.71]])
    assert list(advantages.informative(near)) == [False, False, False, True]
    assert np.any(advantages.grpo(near), axis=-1).tolist() == [False] * 3 + [True]


def test_a_group_of_one_is_refused():
    for advantage in (advantages.grpo, advantages.dr_grpo, advantages.rloo):
        for scores_NG in (np.ones((3, 1)), np.ones(3)):
            with pytest.raises(ValueError, match='at least 2 replies'):
                advantage(scores_NG)
