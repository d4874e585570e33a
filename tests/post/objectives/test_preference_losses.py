"""Losses of pairs: closed forms, and the optimum of each paper's loss."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.post.objectives import preference_losses
from tests.post import tiny

BETA = tiny.BETA
TREE = tiny.make_world()


def sigmoid(x):
    return 1 / (1 + np.exp(-np.float64(x)))


def root(function):
    """The root between -5 and 5 of an increasing function."""
    low, high = -5, 5
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return middle


def test_dpo_finds_the_optimum_of_bradley_terry_preferences():
    B = len(TREE.scores_B)
    chosen_N, rejected_N = sides = np.indices((B, B)).reshape(2, -1)
    gap_N = TREE.scores_B[chosen_N] - TREE.scores_B[rejected_N]
    share_N = sigmoid(gap_N).astype(np.float32) / B**2  # of all pairs
    reference_B = tiny.log_replies(TREE, TREE.reference_SV)

    def check(dpo):
        def loss(logits_SV):
            policy_B = tiny.log_replies(TREE, logits_SV)
            pairs = (x[rows] for x in (policy_B, reference_B) for rows in sides)
            return jnp.sum(share_N * dpo(*pairs)[0])

        tiny.assert_optimal(TREE, tiny.descend(loss, TREE.reference_SV, steps=600))

    check(partial(preference_losses.dpo, beta=BETA))
    tiny.refuses(
        check,
        partial(preference_losses.dpo, beta=2 * BETA),
        partial(preference_losses.dpo, beta=BETA, label_smoothing=0.2),
        partial(preference_losses.ipo, beta=BETA),
    )


# ---- one pair of two actions, p(chosen) = sigmoid(x), reference 1/2 each
#
# `share` is the frequency with which the first action is preferred.


def preferred(loss, share, **options):
    """The x that minimises the expected `loss(ln p, ln p)` of preferences."""

    def total(x):
        a, b = jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)
        return jnp.sum(share * loss(a, b) + (1 - share) * loss(b, a))

    return float(tiny.descend(total, jnp.zeros(1), **options)[0])


def with_reference(loss, **options):
    half = jnp.log(jnp.full(1, 0.5))
    return lambda a, b: loss(a, b, half, half, **options)[0]


def test_dpo_with_label_smoothing_stops_where_a_preference_is_certain():
    x = preferred(
        with_reference(preference_losses.dpo, beta=2.0, label_smoothing=0.1), 1.0
    )
    assert 2.0 * x == pytest.approx(np.log(0.9 / 0.1), abs=0.01)
    endless = with_reference(preference_losses.dpo, beta=2.0)
    assert preferred(endless, 1.0, rate=1.0) > 2 * x


@pytest.mark.parametrize('share', (1.0, 0.7, 0.5))
def test_ipo_goes_as_far_as_the_preference_is_clear(share):
    x = preferred(with_reference(preference_losses.ipo, beta=0.8), share)
    assert x == pytest.approx((2 * share - 1) / (2 * 0.8), abs=0.01)


def test_orpo_weighs_likelihood_and_odds():
    """0 = (p - share) + 2 weight (sigmoid(2 x) - share): its odds ratio is 2 x."""
    share, weight = 0.7, 0.5
    orpo = lambda a, b: preference_losses.orpo(a, b, weight)[0]
    expected = root(
        lambda x: sigmoid(x) - share + 2 * weight * (sigmoid(2 * x) - share)
    )
    assert preferred(orpo, share) == pytest.approx(expected, abs=0.01)
    plain = lambda a, b: preference_losses.orpo(a, b, 0.0)[0]  # only the likelihood
    assert sigmoid(preferred(plain, share)) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize('margin', (0.0, 1.0))
def test_simpo_is_ahead_by_its_margin(margin):
    """0 = (1 - share) sigmoid(beta x + margin) - share sigmoid(margin - beta x)."""
    share, beta = 0.7, 2.0
    simpo = lambda a, b: preference_losses.simpo(a, b, beta, margin)[0]
    expected = root(
        lambda x: (
            (1 - share) * sigmoid(beta * x + margin)
            - share * sigmoid(margin - beta * x)
        )
    )
    assert preferred(simpo, share) == pytest.approx(expected, abs=0.01)
    if not margin:  # then x is the log-odds of the preference
        assert beta * expected == pytest.approx(np.log(0.7 / 0.3))


def kto_loss(share, **options):
    """A function of ln p of an action that is desirable in `share` of the data."""

    def loss(logprob_N):
        kto = lambda desirable: preference_losses.kto(
            *(logprob_N, jnp.log(jnp.full(1, 0.5)), jnp.array([desirable])),
            *(0.0, 0.8),
            **options,
        )[0]
        return jnp.sum(share * kto(True) + (1 - share) * kto(False))

    return loss


def test_kto_starts_with_a_quarter_of_beta():
    start = jnp.log(jnp.full(1, 0.5))
    assert kto_loss(1.0)(start) == pytest.approx(0.5)
    for share, slope in ((1.0, -1.0), (0.0, 1.0), (0.5, 0.0)):
        gradient = jax.grad(kto_loss(share))(start)
        assert gradient[0] == pytest.approx(slope * 0.8 / 4, abs=1e-6)
    # A reply far below or far above the baseline has a small gradient.
    for reward in (-30.0, 30.0):
        assert abs(jax.grad(kto_loss(1.0))(start + reward)[0]) < 1e-6


@pytest.mark.parametrize(
    'share, weight, rises',
    ((0.7, 1.0, True), (0.3, 1.0, False), (0.3, 3.0, True), (0.7, 0.3, False)),
)
def test_kto_follows_the_weighted_majority(share, weight, rises):
    """With contradicting labels, one side gets all (theorem 4.3 of the paper)."""
    loss = lambda x: kto_loss(share, desirable_weight=weight)(jax.nn.log_sigmoid(x))
    x = float(tiny.descend(loss, jnp.zeros(1), steps=600, rate=0.3)[0])
    assert x > 3 if rises else x < -3


def test_kto_baseline_is_a_kl_and_takes_no_gradient():
    arrays = jnp.float32([-1.0, -2.0]), jnp.float32([-3.0, -1.0])
    assert preference_losses.kto_baseline(*arrays) == 0.5
    assert preference_losses.kto_baseline(*arrays[::-1]) == 0.0
    assert not np.any(jax.grad(preference_losses.kto_baseline)(*arrays))
    # It is the point from which rewards are measured.
    above = preference_losses.kto(*arrays, np.array([1, 0]), 2.0, 0.5)[0]
    np.testing.assert_allclose(above, [0.5, sigmoid(-1.5)], rtol=1e-6)


def test_nll_raises_the_chosen_reply():
    chosen_N = jnp.float32([-0.5, -2.0])
    np.testing.assert_array_equal(preference_losses.nll(chosen_N), -chosen_N)
    gradient = jax.grad(lambda x: jnp.sum(preference_losses.nll(x)))(chosen_N)
    np.testing.assert_array_equal(gradient, [-1.0, -1.0])


def test_metrics_of_pairs():
    # ln q of chosen and rejected, three pairs, far apart.
    reference = jnp.float32([-3.0, -40.0, -7.5]), jnp.float32([-9.0, -2.0, -30.0])
    policy = reference[0] + 1.0, reference[1] + jnp.float32([3, 0, 1])
    _, metrics = preference_losses.dpo(*policy, *reference, beta=0.5)
    np.testing.assert_allclose(metrics['chosen_reward'], [0.5, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(metrics['rejected_reward'], [1.5, 0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(metrics['margin'], [-1.0, 0.5, 0.0], atol=1e-6)
    np.testing.assert_array_equal(metrics['accuracy'], [0.0, 1.0, 0.0])


def test_everything_stays_finite_far_out():
    far = jnp.float32([0.0, -1e-9, -2000.0, -1e-4])
    near = jnp.float32([-2000.0, -3.0, 0.0, -1e-4])
    zeros = jnp.zeros(4)
    for loss in (
        lambda a, b: preference_losses.dpo(a, b, zeros, zeros, 0.1)[0],
        lambda a, b: preference_losses.ipo(a, b, zeros, zeros, 0.1)[0],
        lambda a, b: preference_losses.kto(a, zeros, b < -2, 0.0, 0.1)[0],
        lambda a, b: preference_losses.orpo(a, b, 0.1)[0],
        lambda a, b: preference_losses.simpo(a, b, 2.0, 1.0)[0],
    ):
        value, gradients = jax.value_and_grad(
            lambda pair, loss=loss: jnp.sum(loss(*pair))
        )((far, near))
        assert np.isfinite(value) and np.all(np.isfinite(gradients))
