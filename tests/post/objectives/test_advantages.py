"""Advantages by hand, over time and within groups."""

import jax
import numpy as np
import pytest

from gptjax.post.objectives import advantages

# The second reply is truncated at the end of its row, the third is empty, the fourth
# in two parts with something between that was not drawn.
MASK = np.array([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 0, 1, 0]])


def rows():
    rng = np.random.default_rng(0)
    return (rng.normal(size=MASK.shape).astype(np.float32) for _ in range(2))


def test_terminal_rewards():
    rewards_BT = advantages.terminal_rewards([2, -1, 5, 3], MASK)
    assert rewards_BT.dtype == np.float32
    expected = np.zeros(MASK.shape)
    expected[0, 3], expected[1, 4], expected[3, 3] = 2, -1, 3
    np.testing.assert_array_equal(rewards_BT, expected)


def by_reply(rewards_BT, values_BT, gamma, lam):
    """The sum of (gamma lam)^k delta, over each reply's own tokens."""
    expected_BT = np.zeros(MASK.shape)
    for row, mask_T in enumerate(MASK):
        places = np.flatnonzero(mask_T)
        rewards, values = rewards_BT[row, places], values_BT[row, places]
        deltas = rewards + gamma * np.append(values[1:], 0) - values
        for i, place in enumerate(places):
            decay = (gamma * lam) ** np.arange(len(places) - i)
            expected_BT[row, place] = np.sum(decay * deltas[i:])
    return expected_BT


@pytest.mark.parametrize('gamma, lam', ((1.0, 0.95), (0.9, 0.5)))
def test_gae(gamma, lam):
    rewards_BT, values_BT = rows()
    ours_BT, returns_BT = advantages.gae(rewards_BT, values_BT, MASK, gamma, lam)
    expected_BT = by_reply(rewards_BT, values_BT, gamma, lam)
    np.testing.assert_allclose(ours_BT, expected_BT, atol=1e-6)
    np.testing.assert_allclose(returns_BT, ours_BT + values_BT * MASK, atol=1e-6)


def test_gae_with_lambda_1_is_the_return_less_the_value():
    rewards_BT, values_BT = rows()
    ours_BT, returns_BT = advantages.gae(rewards_BT, values_BT, MASK, 0.9, 1.0)
    for row, mask_T in enumerate(MASK):
        places, to_come = np.flatnonzero(mask_T), 0.0
        for place in places[::-1]:
            to_come = rewards_BT[row, place] + 0.9 * to_come
            assert returns_BT[row, place] == pytest.approx(to_come, abs=1e-6)
            left = to_come - values_BT[row, place]
            assert ours_BT[row, place] == pytest.approx(left, abs=1e-6)


def test_gae_with_lambda_0_is_the_error_of_one_step():
    rewards_BT, values_BT = rows()
    ours_BT, _ = advantages.gae(rewards_BT, values_BT, MASK, 0.9, 0.0)
    r, v = rewards_BT[0], values_BT[0]
    errors = [r[1] + 0.9 * v[2] - v[1], r[2] + 0.9 * v[3] - v[2], r[3] - v[3]]
    np.testing.assert_allclose(ours_BT[0], [0, *errors, 0], atol=1e-6)


def test_no_gradient_flows_through_advantages_and_returns():
    rewards_BT, values_BT = rows()
    total = lambda values_BT: sum(
        x.sum() for x in advantages.gae(rewards_BT, values_BT, MASK)
    )
    assert not np.any(jax.grad(total)(values_BT))


def test_whiten():
    x_BT, _ = rows()
    kept = MASK != 0
    white_BT = np.asarray(advantages.whiten(x_BT, MASK))
    assert white_BT[kept].mean() == pytest.approx(0, abs=1e-6)
    assert white_BT[kept].std() == pytest.approx(1, abs=1e-5)
    assert not np.any(white_BT[~kept])
    # Only scaled, around the mean that it had.
    scaled_BT = np.asarray(advantages.whiten(x_BT, MASK, shift_mean=False))
    mean = x_BT[kept].mean()
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
    third, root = 1 / 3, np.sqrt(3)  # std of one in four is sqrt(3) / 4
    np.testing.assert_allclose(
        advantages.grpo(SCORES),
        [[root, *[-root / 3] * 3], [0] * 4, [*[root / 3] * 3, -root]],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        advantages.dr_grpo(SCORES),
        [[0.75, -0.25, -0.25, -0.25], [0] * 4, [0.25, 0.25, 0.25, -0.75]],
    )
    np.testing.assert_allclose(
        advantages.rloo(SCORES),
        [[1, -third, -third, -third], [0] * 4, [third, third, third, -1]],
        rtol=1e-6,
    )


def test_reinforce_and_its_baseline():
    np.testing.assert_allclose(
        advantages.reinforce([1, 0, 0, 1]), [0.5, -0.5] * 1 + [-0.5, 0.5]
    )
    np.testing.assert_allclose(advantages.reinforce([1, 0], baseline=0.2), [0.8, -0.2])
    np.testing.assert_allclose(advantages.reinforce(SCORES).sum(), 0, atol=1e-6)


def test_informative_groups_have_scores_that_differ():
    assert list(advantages.informative(SCORES)) == [True, False, True]
    # Nearly equal ones do not, whether they are large or small.
    near = np.float32([[0.7, 0.7 + 6e-8], [1e6, 1e6 + 1], [0.0, 1e-6], [0.7, 0.71]])
    assert list(advantages.informative(near)) == [False, False, False, True]
    assert np.any(advantages.grpo(near), axis=-1).tolist() == [False] * 3 + [True]


def test_a_group_of_one_is_refused():
    for advantage in (advantages.grpo, advantages.dr_grpo, advantages.rloo):
        with pytest.raises(ValueError, match='at least 2 replies'):
            advantage(np.ones((3, 1)))
        with pytest.raises(ValueError, match='at least 2 replies'):
            advantage(np.ones(3))
