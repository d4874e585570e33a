"""Values of estimators and controller; gradients are in test_known_bugs_kl.py."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.post.objectives import kl
from tests.post import tiny

TREE = tiny.make_world()


def test_the_means_of_the_estimators():
    rng = np.random.default_rng(0)
    p_BTV, q_BTV = (rng.dirichlet(np.ones(5), (2, 3)) for _ in range(2))
    exact_BT = np.sum(p_BTV * np.log(p_BTV / q_BTV), axis=-1)
    logs = np.float32(np.log(p_BTV)), np.float32(np.log(q_BTV))
    mean = lambda estimator: np.sum(p_BTV * estimator(*logs), axis=-1)
    np.testing.assert_allclose(mean(kl.k1), exact_BT, rtol=1e-5)
    np.testing.assert_allclose(mean(kl.k3), exact_BT, rtol=1e-5)
    assert np.all(kl.k3(*logs) >= 0)
    assert np.all(np.abs(mean(kl.k2) / exact_BT - 1) > 0.01)  # biased
    # k2 is nearly exact for policies that are nearly equal.
    q_V = np.full(4, 0.25)
    p_V = q_V + np.array([1, -1, 2, -2]) * 1e-3
    exact = np.sum(p_V * np.log(p_V / q_V))
    logs = np.float32(np.log(p_V)), np.float32(np.log(q_V))
    assert np.sum(p_V * kl.k2(*logs)) == pytest.approx(exact, rel=0.01)


def test_the_sum_over_a_reply_is_the_kl_of_replies():
    p_SV, q_SV = TREE.reference_SV[::-1], TREE.reference_SV
    per_reply_B = kl.kl_per_reply(
        tiny.logprobs(TREE, p_SV), tiny.logprobs(TREE, q_SV), TREE.mask_BT
    )
    ours = jnp.sum(tiny.probabilities(TREE, p_SV) * per_reply_B)
    assert float(ours) == pytest.approx(float(tiny.reply_kl(TREE, p_SV)), rel=1e-5)


def test_the_reward_and_the_score_lose_the_same():
    mask_BT = np.array([[0, 1, 1], [1, 1, 0]])
    rewards_BT = np.array([[0, 0, 1], [0, 2, 0]])  # whole numbers
    logprobs_BT = np.float32([[9, -1, -2], [-1, -3, 9]])
    reference_BT = np.float32([[0, -2, -1.5], [-2, -2, 0]])
    in_reward_BT = kl.kl_in_reward(
        rewards_BT, logprobs_BT, reference_BT, mask_BT, coefficient=0.5
    )
    np.testing.assert_allclose(in_reward_BT, [[0, -0.5, 1.25], [-0.5, 2.5, 0]])
    in_score_B = kl.kl_in_score(
        np.array([1, 2]), logprobs_BT, reference_BT, mask_BT, coefficient=0.5
    )
    np.testing.assert_allclose(in_score_B, jnp.sum(in_reward_BT, axis=-1))


def test_losses_are_0_outside_the_mask_and_at_the_reference():
    logprobs_BT, mask_BT = jnp.float32([[-1.0, -5.0, -2.0]]), np.array([[1, 0, 1]])
    reference_BT = jnp.float32([[-1.5, -1.0, -1.0]])
    k3_loss = partial(kl.kl_loss, estimator=kl.k3)
    for loss in (kl.kl_loss, kl.reply_kl_loss, k3_loss):
        assert loss(logprobs_BT, reference_BT, mask_BT)[0, 1] == 0
        total = lambda p, loss=loss: jnp.sum(loss(p, reference_BT, mask_BT))
        assert jax.grad(total)(logprobs_BT)[0, 1] == 0
        assert not np.any(jax.grad(total)(reference_BT))


def test_reply_kl_loss_adds_up_to_k2_of_the_reply():
    loss_BT = kl.reply_kl_loss(
        jnp.float32([[-1.0, -2.0]]), jnp.float32([[-1.5, -3.0]]), np.ones((1, 2))
    )
    assert jnp.sum(loss_BT) == pytest.approx(0.5 * 1.5**2)


def test_adaptive_kl_by_hand():
    start = kl.AdaptiveKL(coefficient=0.2, target=6.0, horizon=100)
    for mean, replies, factor in (
        (6.0, 10, 1.0),
        (6.6, 10, 1.01),  # error 0.1, times 10 / 100
        (60.0, 10, 1.02),  # the error is at most 0.2
        (0.0, 10, 0.98),
        (-1.0, 10**9, 0.8),  # never negative
    ):
        coefficient = start.after(mean, replies).coefficient
        assert coefficient == pytest.approx(0.2 * factor)
    fixed = kl.AdaptiveKL(coefficient=0.2)
    assert fixed.after(100.0, 64) == fixed
