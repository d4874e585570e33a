"""Token losses by hand: values, gradients, and where clipping removes gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.post.objectives import policy_losses, reply_tokens

ONE = np.ones((1, 1))


def surrogate(ratio, advantage, objective=policy_losses.clipped, **options):
    """(loss, its gradient with respect to ln p, metrics) of one token."""

    def loss(logprob):
        loss_BT, metrics = objective(
            *(logprob * ONE, 0.0 * ONE, advantage * ONE, ONE), **options
        )
        return loss_BT[0, 0], metrics

    differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, metrics), gradient = differentiate(np.float32(np.log(ratio)))
    metrics = {name: float(x[0, 0]) for name, x in metrics.items()}
    return float(value), float(gradient), metrics


@pytest.mark.parametrize(
    'ratio, advantage, clipped',
    (
        (1.0, 2.0, None),
        (1.1, 2.0, None),
        (1.5, 2.0, 1.28),
        (0.5, 2.0, None),  # the ratio moved against the advantage
        (1.5, -2.0, None),
        (0.5, -2.0, 0.8),
    ),
)
def test_clipped(ratio, advantage, clipped):
    value, gradient, metrics = surrogate(ratio, advantage, low=0.2, high=0.28)
    assert value == pytest.approx(-(clipped or ratio) * advantage)
    assert gradient == pytest.approx(0 if clipped else -ratio * advantage, abs=1e-6)
    assert metrics == pytest.approx(
        dict(
            ratio=ratio,
            clip_fraction=float(clipped is not None),
            approx_kl=ratio - 1 - np.log(ratio),
            advantage=advantage,
        ),
        abs=1e-6,
    )


def test_reinforce_has_no_ratio():
    value, gradient, metrics = surrogate(0.5, 2.0, policy_losses.reinforce)
    assert (value, gradient) == pytest.approx((-2 * np.log(0.5), -2.0))
    assert metrics['clip_fraction'] == 0
    assert metrics['ratio'] == pytest.approx(0.5)


MASK = np.array([[0, 1, 1, 1], [1, 1, 0, 0]])
OLD = np.float32([[-1, -2, -3, -4], [-1, -1, -1, -1]])


def gspo_loss(logprobs_BT, advantages_B1):
    """The mean over replies."""
    loss_BT, metrics = policy_losses.gspo(
        logprobs_BT, OLD, advantages_B1, MASK, low=0.2, high=0.2
    )
    weights_BT, counts_B = reply_tokens.sequence_weights(MASK)
    return jnp.sum(weights_BT * loss_BT) / jnp.sum(counts_B), metrics


def test_gspo_is_the_surrogate_of_the_replys_ratio():
    logprobs_BT = jnp.asarray(OLD + np.float32([[9, 0.1, 0.3, -0.1], [0.2, 0.4, 9, 9]]))
    advantages_B1 = np.float32([[2.0], [-1.0]])

    def by_the_paper(logprobs_BT):
        apart_BT = jnp.where(MASK, logprobs_BT - OLD, 0.0)
        s_B = jnp.exp(jnp.sum(apart_BT, -1) / MASK.sum(-1))
        free_B = s_B * advantages_B1[:, 0]
        kept_B = jnp.clip(s_B, 0.8, 1.2) * advantages_B1[:, 0]
        return -jnp.mean(jnp.minimum(free_B, kept_B))

    differentiate = jax.jit(jax.value_and_grad(gspo_loss, has_aux=True))
    (loss, metrics), gradient_BT = differentiate(logprobs_BT, advantages_B1)
    expected = jax.jit(jax.value_and_grad(by_the_paper))(logprobs_BT)
    assert float(loss) == pytest.approx(float(expected[0]), rel=1e-6)
    np.testing.assert_allclose(gradient_BT, expected[1], atol=1e-6)
    np.testing.assert_allclose(
        metrics['ratio'], MASK * np.exp([[0.1], [0.3]]), rtol=1e-6
    )


def test_gspo_clips_whole_replies():
    logprobs_BT = jnp.asarray(OLD + np.float32([[0, 2, -1, -1], [0.5, 0.5, 0, 0]]))
    gradient_BT, _ = jax.jit(jax.grad(gspo_loss, has_aux=True))(
        logprobs_BT, np.ones((2, 1))
    )
    # The tokens of the first reply changed much, but not their mean: nothing is
    # clipped.
    np.testing.assert_allclose(gradient_BT[0], -MASK[0] / 3 / 2, rtol=1e-6)
    assert not np.any(gradient_BT[1])


@pytest.mark.parametrize(
    'objective', (policy_losses.clipped, policy_losses.gspo, policy_losses.reinforce)
)
def test_only_the_policy_has_a_gradient(objective):
    def loss(logprobs_BT, old_BT, advantages_BT):
        return jnp.sum(objective(logprobs_BT, old_BT, advantages_BT, MASK)[0])

    # Nothing is clipped.
    arrays = (OLD + np.float32(1e-4), OLD, np.ones((2, 4)))
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)
    assert np.array_equal(gradients[0] != 0, MASK != 0)
    assert not np.any(gradients[1]) and not np.any(gradients[2])


def test_value_loss():
    values, old, returns = (np.float32([x]) for x in ([1, 3, 3], [0, 0, 2], [2, 2, 2]))
    mask = np.array([[1, 1, 0]])
    compute_loss = lambda values_BT, clip: policy_losses.value_loss(
        values_BT, old, returns, mask, clip
    )
    loss_BT, metrics = compute_loss(values, 0.0)
    np.testing.assert_allclose(loss_BT, [[0.5, 0.5, 0]])
    assert not np.any(metrics['value_clip_fraction'])
    # The value is clipped to 0.5, as the old value is 0. The return is 2, so 0.5 has
    # the larger error than 1 and 3.
    loss_BT, metrics = compute_loss(values, 0.5)
    np.testing.assert_allclose(loss_BT, [[1.125, 1.125, 0]])
    np.testing.assert_array_equal(metrics['value_clip_fraction'], [[1, 1, 0]])
    gradient = jax.grad(lambda values_BT: jnp.sum(compute_loss(values_BT, 0.5)[0]))
    assert not np.any(gradient(values))
    # A value that moves away from the return is not clipped.
    assert gradient(np.float32([[-3, 3, 3]]))[0, 0] == pytest.approx(-5)


def test_explained_variance():
    mask = np.array([[1, 1, 1, 0]])
    returns = np.float32([[1, 2, 3, 99]])
    explained = lambda values: float(
        policy_losses.explained_variance(np.float32([values]), returns, mask)
    )
    for values, expected in (
        ([1, 2, 3, 0], 1),
        ([2, 2, 2, 0], 0),
        ([5, 6, 7, 0], 1),  # a constant error has no variance
        ([3, 2, 1, 0], -3),
    ):
        assert explained(values) == pytest.approx(expected)
    assert policy_losses.explained_variance(returns, 0 * returns, mask) == 0


@pytest.mark.parametrize('kl_coefficient, expected', ((None, 3 - 0.1), (0.5, 3.9)))
def test_kl_and_entropy_are_added_inside_the_mask(kl_coefficient, expected):
    loss_BT, metrics = policy_losses.add_kl_and_entropy(
        jnp.float32([[3, 0]]),
        *(np.float32([[-1, -5]]), np.float32([[-3, -1]])),  # ln p and ln q
        *(np.float32([[1, 2]]), np.array([[1, 0]]), 0.1, kl_coefficient),
    )
    np.testing.assert_allclose(loss_BT, [[expected, 0]])
    np.testing.assert_array_equal(metrics['kl_loss'], [[2, 0]])
