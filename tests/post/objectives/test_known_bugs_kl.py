"""Known bugs of the KL and of the sampled policy: each one, put in, fails a check.

Each test has a `check` of a property. Our function passes it; wrong functions fail it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.infer.sampling import Sampling, filter_logits
from gptjax.models import gpt
from gptjax.post.objectives import kl, logprobs, policy_losses
from tests import helpers
from tests.post import tiny

TREE, BANDIT = tiny.make_world(), tiny.bandit()
POLICY_SV = TREE.reference_SV[::-1]


# ---- the KL in the reward and in the loss; a reference policy that moves


def check_finds_the_optimum(loss):
    tiny.assert_optimal(BANDIT, tiny.descend(loss, BANDIT.reference_SV))


def test_kl_counts_once():
    loss = lambda *betas: lambda x: tiny.reinforce(BANDIT, x, *betas)
    check_finds_the_optimum(loss(tiny.BETA, 0.0))
    check_finds_the_optimum(loss(0.0, tiny.BETA))
    tiny.refuses(check_finds_the_optimum, loss(tiny.BETA, tiny.BETA))


def test_the_reference_stays_where_it_is():
    def moved(logits_SV):  # shares its parameters with the policy
        reference_BT = jax.lax.stop_gradient(tiny.logprobs(BANDIT, logits_SV))
        return tiny.reinforce(BANDIT, logits_SV, reference_BT=reference_BT)

    check_finds_the_optimum(partial(tiny.reinforce, BANDIT))
    tiny.refuses(check_finds_the_optimum, moved)


# ---- estimators of the KL: compared with the gradient of the exact KL

EXACT = jax.jit(jax.grad(tiny.reply_kl, argnums=1))


def check_in_the_loss(world, kl_loss):
    """The gradient of the loss is that of the KL of whole replies."""
    V = world.reference_SV.shape[1]
    logits_SV = world.reference_SV[::-1] + np.float32([0, 1, -1, 2][:V])
    reference_BT = tiny.logprobs(world, world.reference_SV)
    ascent_SV = tiny.expected_gradient(
        world, logits_SV, lambda now, _: kl_loss(now, reference_BT, world.mask_BT)
    )
    np.testing.assert_allclose(-ascent_SV, EXACT(world, logits_SV), atol=2e-6)


def test_k2_belongs_in_the_loss():
    unmasked = lambda estimator: lambda p, q, mask_BT: estimator(p, q)
    check_bandit, check_tree = (
        partial(check_in_the_loss, world) for world in (BANDIT, TREE)
    )
    check_bandit(kl.kl_loss)
    check_bandit(kl.reply_kl_loss)
    tiny.refuses(check_bandit, unmasked(kl.k1), unmasked(kl.k3))
    # In replies of several tokens, the KL of a token ignores later tokens.
    check_tree(kl.reply_kl_loss)
    tiny.refuses(check_tree, kl.kl_loss, unmasked(kl.k3), unmasked(kl.k1))


def test_k1_as_a_loss_has_no_gradient():
    reference_BT = tiny.logprobs(TREE, TREE.reference_SV)
    gradient_SV = tiny.expected_gradient(
        TREE, POLICY_SV, lambda now, _: kl.k1(now, reference_BT)
    )
    np.testing.assert_allclose(gradient_SV, np.zeros_like(gradient_SV), atol=1e-6)


def test_k3_as_a_loss_is_the_kl_the_other_way_round():
    reference_BT = tiny.logprobs(BANDIT, BANDIT.reference_SV)
    logits_SV = jnp.zeros_like(BANDIT.reference_SV)
    gradient_SV = tiny.expected_gradient(
        BANDIT, logits_SV, lambda now, _: kl.k3(now, reference_BT)
    )
    other = lambda logits_SV: tiny.reply_kl(BANDIT, BANDIT.reference_SV, logits_SV)
    exact_SV = jax.jit(jax.grad(other))(logits_SV)
    np.testing.assert_allclose(-gradient_SV, exact_SV, atol=1e-6)


def reward_gradient(world, logits_SV, kl_in_reward):
    """The descent of the policy gradient, with the KL as the only reward."""
    reference_BT, mask_BT = tiny.logprobs(world, world.reference_SV), world.mask_BT

    def loss(logprobs_BT, old_BT):
        zeros_BT = jnp.zeros_like(old_BT)
        rewards_BT = kl_in_reward(zeros_BT, old_BT, reference_BT, mask_BT, 0.5)
        return_B1 = jnp.sum(rewards_BT, axis=-1, keepdims=True)
        return policy_losses.reinforce(logprobs_BT, old_BT, return_B1, mask_BT)[0]

    return -tiny.expected_gradient(world, logits_SV, loss) / 0.5


def test_k1_belongs_in_the_reward():
    def check(kl_in_reward):
        """With rewards of 0, the policy gradient is that of -beta KL."""
        gradient_SV = reward_gradient(TREE, POLICY_SV, kl_in_reward)
        np.testing.assert_allclose(gradient_SV, EXACT(TREE, POLICY_SV), atol=2e-6)

    with_estimator = lambda name: partial(
        kl.kl_in_reward, estimator=kl.ESTIMATORS[name]
    )
    check(kl.kl_in_reward)
    check(with_estimator('k1'))
    tiny.refuses(check, with_estimator('k2'), with_estimator('k3'))


def test_k2_and_k3_in_the_reward_have_nearly_no_gradient_near_the_reference():
    def gradient(name, logits_SV):
        in_reward = partial(kl.kl_in_reward, estimator=kl.ESTIMATORS[name])
        return reward_gradient(BANDIT, logits_SV, in_reward)

    other = lambda logits_SV: tiny.reply_kl(BANDIT, BANDIT.reference_SV, logits_SV)
    far_SV = jnp.zeros_like(BANDIT.reference_SV)
    exact_SV = EXACT(BANDIT, far_SV) - jax.jit(jax.grad(other))(far_SV)
    np.testing.assert_allclose(gradient('k3', far_SV), exact_SV, atol=2e-6)
    near_SV = BANDIT.reference_SV + np.float32([0, 1, -1, 2]) * 0.01
    size = np.abs(gradient('k1', near_SV)).max()
    for name in ('k2', 'k3'):
        assert np.abs(gradient(name, near_SV)).max() < 0.05 * size


def test_the_reward_takes_no_gradient():
    """Differentiating the KL in the reward would add the gradient of k1 times p."""

    def check(kl_in_reward):
        def total(logprobs_BT):
            return jnp.sum(kl_in_reward(zeros_BT, logprobs_BT, zeros_BT, mask_BT, 1.0))

        mask_BT, zeros_BT = TREE.mask_BT, jnp.zeros(TREE.mask_BT.shape)
        assert not np.any(jax.grad(total)(zeros_BT - 1.0))

    check(kl.kl_in_reward)
    tiny.refuses(check, lambda r, p, q, mask, beta: r - beta * (p - q) * mask)


# ---- temperature, truncation, dropout: the sampled policy is the trained one


def test_policy_and_reference_have_one_temperature():
    params = tiny.params()

    def check(temperatures):
        """If the policy equals the reference, the KL is 0."""
        policy_BT, reference_BT = (
            tiny.compute(tiny.SETTINGS, params, tiny.BATCH, temperature)[0]
            for temperature in temperatures
        )
        kl_B = kl.kl_per_reply(policy_BT, reference_BT, tiny.BATCH['weights'])
        np.testing.assert_array_equal(kl_B, np.zeros(4))

    check((0.7, 0.7))
    tiny.refuses(check, (0.7, 1.0), (1.0, 0.7))


def test_trained_on_what_was_sampled_from():
    logits_V = jnp.linspace(-2.0, 2.0, 6)

    @jax.jit
    @jax.grad
    def gradient(logits_V, sampling, temperature):
        drawn_V = jax.nn.softmax(filter_logits(logits_V[None], sampling)[0])
        every_VV = jnp.broadcast_to(logits_V / temperature, (6, 6))
        logprobs_V, _ = logprobs.logits_logprobs(every_VV, jnp.arange(6))
        return jnp.sum(jax.lax.stop_gradient(drawn_V) * logprobs_V)

    def check(sampling_and_temperature):
        """E[gradient of ln p] = 0 for samples from p; else baselines are biased."""
        gradient_V = gradient(logits_V, *sampling_and_temperature)
        np.testing.assert_allclose(gradient_V, np.zeros(6), atol=1e-6)

    check((Sampling(), 1.0))
    check((Sampling(temperature=0.7), 0.7))
    tiny.refuses(
        check,
        (Sampling(temperature=0.7), 1.0),
        (Sampling(top_k=3), 1.0),
        (Sampling(top_p=0.8), 1.0),
        (Sampling(min_p=0.3), 1.0),
    )


def test_the_first_ratios_are_1():
    params = tiny.params()
    mask_BT = tiny.BATCH['weights']

    @jax.jit
    def sampled_logprobs(params, temperature):
        """As in the sampler: the logits of a full forward pass, then its filter."""
        inputs = (tiny.BATCH[name] for name in ('inputs', 'segments', 'positions'))
        logits_BTV = gpt.bind(tiny.SETTINGS, params)(*inputs)
        rows_RV = logits_BTV.reshape(-1, logits_BTV.shape[-1])
        rows_RV = filter_logits(rows_RV, Sampling(temperature=temperature))
        targets_R = tiny.BATCH['targets'].reshape(-1)
        chosen_R = jax.nn.log_softmax(rows_RV)[jnp.arange(len(targets_R)), targets_R]
        return chosen_R.reshape(mask_BT.shape)

    old_BT = sampled_logprobs(params, 0.7)

    def check(trainer):
        now_BT, _ = trainer()
        _, metrics = policy_losses.clipped(now_BT, old_BT, jnp.ones((4, 1)), mask_BT)
        np.testing.assert_allclose(metrics['ratio'], mask_BT, atol=1e-5)
        assert np.sum(metrics['clip_fraction']) == 0

    uncapped = helpers.model_settings(**tiny.MODEL | dict(logit_softcap=0.0))
    compute = partial(tiny.compute, tiny.SETTINGS, params, tiny.BATCH)
    check(lambda: compute(0.7))
    tiny.refuses(
        check,
        lambda: compute(0.7, jax.random.key(1)),  # dropout
        lambda: compute(1.0),  # without the temperature
        lambda: tiny.compute(uncapped, params, tiny.BATCH, 0.7),  # without the soft cap
    )


# ---- the adaptive coefficient uses the sum over a reply


def test_adaptive_kl_reads_the_sum_of_a_reply():
    target, mask_BT = 0.3, TREE.mask_BT
    reference_BT = tiny.logprobs(TREE, TREE.reference_SV)

    def policy_of(p_B):
        """The log-probabilities (B, T) of these replies' tokens."""
        edges_SV = np.zeros(TREE.reference_SV.shape)
        np.add.at(edges_SV, (TREE.prefixes_BT, TREE.targets_BT), mask_BT * p_B[:, None])
        table_SV = np.log(edges_SV / edges_SV.sum(-1, keepdims=True))
        return table_SV[TREE.prefixes_BT, TREE.targets_BT]

    def check(measure):
        """With the best policy for each coefficient, the KL converges to the target."""
        controller = kl.AdaptiveKL(coefficient=3.0, target=target, horizon=64)
        for _ in range(200):
            p_B = np.asarray(tiny.optimum(TREE, controller.coefficient))
            mean = measure(policy_of(p_B), reference_BT, mask_BT, p_B)
            controller = controller.after(mean, replies=64)
        log_q_B = np.asarray(tiny.log_replies(TREE, TREE.reference_SV))
        exact = np.sum(p_B * (np.log(p_B) - log_q_B))
        assert exact == pytest.approx(target, rel=0.02)

    def summed(logprobs_BT, reference_BT, mask_BT, p_B):
        return np.sum(p_B * kl.kl_per_reply(logprobs_BT, reference_BT, mask_BT))

    def mean_over_tokens(logprobs_BT, reference_BT, mask_BT, p_B):
        k1_BT = np.where(mask_BT, kl.k1(logprobs_BT, reference_BT), 0)
        return np.sum(p_B * k1_BT.sum(-1) / mask_BT.sum(-1))

    check(summed)
    tiny.refuses(check, mean_over_tokens)
