"""Every algorithm finds the known optimum of worlds that can be written down.

With the KL to the reference counted beta times, the best policy is
p(y) ~ q(y) exp(score(y) / beta). Expectations are sums over all replies (or groups of
replies), each weighed by the probability that the policy draws it; the gradient
descended is the one that the algorithm's functions give.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.post.objectives import advantages, kl, policy_losses, reply_tokens
from tests.post import tiny

BETA = 0.5
TREE, BANDIT = tiny.make_world(), tiny.bandit()
# Adam stops within its last steps' size of the optimum.
NEAR = 0.01


def assert_optimal(world, logits_SV, beta=BETA):
    np.testing.assert_allclose(
        tiny.probabilities(world, logits_SV), tiny.optimum(world, beta), atol=NEAR
    )


def solve(world, loss, **options):
    return tiny.descend(partial(loss, world), world.reference_SV, **options)


def rewards(world, old_BT, beta):
    """Token by token, with the KL in them."""
    reference_BT = tiny.logprobs(world, world.reference_SV)
    rewards_BT = advantages.terminal_rewards(world.scores_B, world.mask_BT)
    return kl.kl_in_reward(rewards_BT, old_BT, reference_BT, world.mask_BT, beta)


def drawn(world, logits_SV):
    """(ln p with gradient, ln p without, the probability of each row), on policy."""
    logprobs_BT = tiny.logprobs(world, logits_SV)
    p_B = jax.lax.stop_gradient(tiny.probabilities(world, logits_SV))
    return logprobs_BT, jax.lax.stop_gradient(logprobs_BT), p_B


def single(world, logits_SV, beta=BETA):
    """REINFORCE of single replies with the batch's mean as baseline."""
    logprobs_BT, old_BT, p_B = drawn(world, logits_SV)
    scores_B = jnp.sum(rewards(world, old_BT, beta), axis=-1)
    advantages_B = advantages.reinforce(scores_B, jnp.sum(p_B * scores_B))
    loss_BT, _ = policy_losses.reinforce(
        logprobs_BT, old_BT, advantages_B[:, None], world.mask_BT
    )
    return jnp.sum(p_B[:, None] * loss_BT)


def with_values(world, logits_SV, beta=BETA, lam=0.95):
    """PPO's gradient at a rollout, with the exact value function."""
    logprobs_BT, old_BT, p_B = drawn(world, logits_SV)
    rewards_BT = rewards(world, old_BT, beta)
    values_BT = tiny.values(world, logits_SV, rewards_BT)[world.prefixes_BT]
    advantages_BT, _ = advantages.gae(rewards_BT, values_BT, world.mask_BT, lam=lam)
    loss_BT, _ = policy_losses.clipped(
        logprobs_BT, old_BT, advantages_BT, world.mask_BT
    )
    return jnp.sum(p_B[:, None] * loss_BT)


def grouped(
    world,
    logits_SV,
    advantage=advantages.grpo,
    weigh=reply_tokens.sequence_weights,
    objective=policy_losses.clipped,
    beta=BETA,
    size=2,
):
    """The group's algorithms, over all groups of replies."""
    groups_NG = tiny.all_groups(world, size)
    logprobs_BT, old_BT, p_B = drawn(world, logits_SV)
    scores_B = jnp.sum(rewards(world, old_BT, beta), axis=-1)
    advantages_NG = advantage(scores_B[groups_NG])

    rows = groups_NG.reshape(-1)
    mask_RT = world.mask_BT[rows]
    loss_RT, _ = objective(
        logprobs_BT[rows], old_BT[rows], advantages_NG.reshape(-1, 1), mask_RT
    )
    weights_RT, counts_R = weigh(mask_RT)
    p_R = jnp.repeat(jnp.prod(p_B[groups_NG], axis=-1), size)
    total = jnp.sum(p_R[:, None] * weights_RT * loss_RT)
    return total / jnp.sum(p_R * counts_R)


# The variants by their papers' names: advantage, normaliser, objective.
whole_sum = partial(reply_tokens.constant_weights, length=1)
GROUPED = {
    'grpo': partial(grouped),
    'dr_grpo': partial(
        grouped,
        advantage=advantages.dr_grpo,
        weigh=partial(reply_tokens.constant_weights, length=3),
    ),
    'dapo': partial(
        grouped,
        weigh=reply_tokens.token_weights,
        objective=partial(policy_losses.clipped, low=0.2, high=0.28),
    ),
    'gspo': partial(grouped, objective=policy_losses.gspo),
    'rloo': partial(
        grouped,
        advantage=advantages.rloo,
        weigh=whole_sum,
        objective=policy_losses.reinforce,
    ),
}
ALL = dict(GROUPED, reinforce=single, ppo=with_values)


def test_the_start_is_not_the_optimum():
    for world in (TREE, BANDIT):
        with pytest.raises(AssertionError):
            assert_optimal(world, world.reference_SV)


@pytest.mark.parametrize('name', ALL)
def test_kl_in_the_reward(name):
    assert_optimal(TREE, solve(TREE, ALL[name]))


@pytest.mark.slow
@pytest.mark.parametrize('name', ALL)
def test_without_kl_the_best_reply_wins(name):
    logits_SV = solve(TREE, partial(ALL[name], beta=0.0), steps=600, rate=0.2)
    p_B = tiny.probabilities(TREE, logits_SV)
    assert p_B[np.argmax(TREE.scores_B)] > 0.95


@pytest.mark.slow
def test_a_larger_group():
    assert_optimal(BANDIT, solve(BANDIT, partial(grouped, size=4)))


def with_k2(world, logits_SV, k2):
    """REINFORCE without the KL in the reward, and k2 beside it."""
    logprobs_BT, _, p_B = drawn(world, logits_SV)
    reference_BT = tiny.logprobs(world, world.reference_SV)
    kl_BT = k2(logprobs_BT, reference_BT, world.mask_BT)
    return single(world, logits_SV, beta=0.0) + BETA * jnp.sum(p_B[:, None] * kl_BT)


def test_k2_as_the_loss_of_one_token():
    loss = partial(with_k2, k2=kl.kl_loss)
    assert_optimal(BANDIT, solve(BANDIT, loss))
    with pytest.raises(AssertionError):  # see the next two
        assert_optimal(TREE, solve(TREE, loss))


def test_k2_as_the_loss_of_whole_replies():
    loss = partial(with_k2, k2=kl.reply_kl_loss)
    assert_optimal(BANDIT, solve(BANDIT, loss))
    assert_optimal(TREE, solve(TREE, loss))


@pytest.mark.slow
def test_k2_of_each_token_has_an_optimum_of_its_own():
    """p(a | s) ~ q(a | s) exp(Q(s, a) / beta), Q of the scores without later KL."""
    logits_SV = solve(TREE, partial(with_k2, k2=kl.kl_loss))
    scores_BT = advantages.terminal_rewards(TREE.scores_B, TREE.mask_BT)
    values_S = tiny.values(TREE, logits_SV, scores_BT)
    S, V = TREE.reference_SV.shape
    # A reply's own score where it ends, the next prefix's value where it goes on.
    following_SV = np.zeros((S, V), np.float32)
    for row, mask_T in enumerate(TREE.mask_BT):
        length = mask_T.sum()
        for t in range(length):
            ends = t + 1 == length
            following_SV[TREE.prefixes_BT[row, t], TREE.targets_BT[row, t]] = (
                TREE.scores_B[row] if ends else values_S[TREE.prefixes_BT[row, t + 1]]
            )
    wanted_SV = jax.nn.softmax(TREE.reference_SV + following_SV / BETA)
    np.testing.assert_allclose(jax.nn.softmax(logits_SV), wanted_SV, atol=NEAR)


# Gradients against autodiff of E[score] - beta KL, at a policy that is not optimal.


EXACT = jax.jit(jax.grad(tiny.objective, argnums=1))


def ascent(world, loss, beta=BETA):
    """(minus the gradient of a loss, the gradient of the objective), both (S, V)."""
    logits_SV = jnp.asarray(world.reference_SV[::-1])
    return (
        -jax.jit(jax.grad(partial(loss, world, beta=beta)))(logits_SV),
        EXACT(world, logits_SV, beta),
    )


def assert_gradient(loss, scale=1.0):
    ours_SV, exact_SV = ascent(TREE, loss)
    np.testing.assert_allclose(ours_SV, scale * exact_SV, atol=2e-6)  # of about 0.1


@pytest.mark.parametrize('lam', (0.0, 0.5, 1.0))
def test_gradient_with_exact_values_whatever_lambda(lam):
    assert_gradient(partial(with_values, lam=lam))


def test_gradient_of_reinforce_and_rloo():
    assert_gradient(single)
    assert_gradient(GROUPED['rloo'])


def test_gradient_of_dr_grpo_is_scaled_alone():
    # By the constant length, and by (G - 1) / G, as the mean has the reply in it.
    assert_gradient(GROUPED['dr_grpo'], scale=1 / 3 * 1 / 2)
    assert_gradient(partial(GROUPED['dr_grpo'], size=3), scale=1 / 3 * 2 / 3)


def test_gradient_of_a_token_level_loss_is_scaled_alone():
    logits_SV = TREE.reference_SV[::-1]
    p_B = tiny.probabilities(TREE, logits_SV)
    mean_length = float(jnp.sum(p_B * TREE.mask_BT.sum(-1)))
    loss = partial(grouped, advantage=advantages.rloo, weigh=reply_tokens.token_weights)
    assert_gradient(loss, scale=1 / mean_length)


def test_gradient_with_a_mean_for_each_reply_is_another():
    """The bias that Dr. GRPO takes out: long wrong replies are punished less."""
    ours_SV, exact_SV = ascent(TREE, partial(grouped, advantage=advantages.rloo))
    cosine = jnp.vdot(ours_SV, exact_SV) / (
        jnp.linalg.norm(ours_SV) * jnp.linalg.norm(exact_SV)
    )
    assert 0 < cosine < 0.999


@pytest.mark.slow
def test_gspo_on_policy_is_a_mean_for_each_reply():
    ours_SV, _ = ascent(TREE, partial(grouped, advantage=advantages.rloo))
    gspo_SV, _ = ascent(
        TREE, partial(grouped, advantage=advantages.rloo, objective=policy_losses.gspo)
    )
    np.testing.assert_allclose(ours_SV, gspo_SV, atol=1e-6)


# PPO as it is run: values that are learned, several epochs a rollout.


def test_value_loss_finds_the_value_function():
    logprobs_BT = tiny.logprobs(TREE, TREE.reference_SV[::-1])
    p_B = tiny.probabilities(TREE, TREE.reference_SV[::-1])
    rewards_BT = rewards(TREE, logprobs_BT, BETA)
    exact_S = tiny.values(TREE, TREE.reference_SV[::-1], rewards_BT)

    for lam in (0.0, 0.95):  # not only from returns, also from its own estimates

        def loss(values_S, lam=lam):
            values_BT = values_S[TREE.prefixes_BT]
            _, returns_BT = advantages.gae(rewards_BT, values_BT, TREE.mask_BT, lam=lam)
            loss_BT, _ = policy_losses.value_loss(
                values_BT, values_BT, returns_BT, TREE.mask_BT, clip=0.2
            )
            return jnp.sum(p_B[:, None] * loss_BT)

        values_S = tiny.descend(loss, jnp.zeros_like(exact_S))
        np.testing.assert_allclose(values_S, exact_S, atol=NEAR)


def test_ppo_with_learned_values_and_epochs():
    world = TREE
    rollouts, epochs = 300, 4
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, rollouts * epochs))
    reference_BT = tiny.logprobs(world, world.reference_SV)

    def rollout(_, state):
        params, _ = state
        _, old_BT, p_B = drawn(world, params['policy'])
        old_values_BT = params['values'][world.prefixes_BT]
        rewards_BT = kl.kl_in_reward(
            advantages.terminal_rewards(world.scores_B, world.mask_BT),
            *(old_BT, reference_BT, world.mask_BT, BETA),
        )
        advantages_BT, returns_BT = advantages.gae(
            rewards_BT, old_values_BT, world.mask_BT
        )
        advantages_BT = advantages.whiten(advantages_BT, world.mask_BT)

        def loss(params):
            policy_BT, _ = policy_losses.clipped(
                tiny.logprobs(world, params['policy']),
                *(old_BT, advantages_BT, world.mask_BT),
            )
            value_BT, _ = policy_losses.value_loss(
                params['values'][world.prefixes_BT],
                *(old_values_BT, returns_BT, world.mask_BT),
                clip=0.5,
            )
            return jnp.sum(p_B[:, None] * (policy_BT + value_BT))

        def epoch(_, state):
            params, moments = state
            updates, moments = optimizer.update(jax.grad(loss)(params), moments)
            return optax.apply_updates(params, updates), moments

        return jax.lax.fori_loop(0, epochs, epoch, state)

    params = dict(
        policy=jnp.asarray(world.reference_SV),
        values=jnp.zeros(world.reference_SV.shape[0]),
    )
    state = (params, optimizer.init(params))
    run = jax.jit(lambda state: jax.lax.fori_loop(0, rollouts, rollout, state))
    params, _ = run(state)
    assert_optimal(world, params['policy'])


def test_entropy_bonus_alone_makes_the_policy_uniform():
    def loss(world, logits_SV):
        logprobs_SV = jax.nn.log_softmax(logits_SV)
        entropy_S = -jnp.sum(jnp.exp(logprobs_SV) * logprobs_SV, axis=-1)
        zeros_BT = jnp.zeros(world.mask_BT.shape)
        loss_BT, _ = policy_losses.add_kl_and_entropy(
            *(zeros_BT, zeros_BT, zeros_BT, entropy_S[world.prefixes_BT]),
            *(world.mask_BT, 0.3),
        )
        return jnp.sum(loss_BT)

    p_SV = jax.nn.softmax(solve(TREE, loss))
    np.testing.assert_allclose(p_SV, jnp.full_like(p_SV, 1 / 3), atol=NEAR)
