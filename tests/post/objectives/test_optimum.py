"""Every algorithm finds the known optimum of a small problem that lists all replies.

With a KL coefficient beta, the best policy is p(y) ~ q(y) exp(score(y) / beta).
Expectations are exact: sums over all replies, or groups of replies, weighted by their
probability. The gradients are those of the functions of the algorithm.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.post.objectives import advantages, kl, policy_losses, reply_tokens
from tests.post import tiny

BETA = tiny.BETA
TREE, BANDIT = tiny.make_world(), tiny.bandit()
POLICY_SV = TREE.reference_SV[::-1]  # a policy that is not optimal


def solve(world, loss, **options):
    return tiny.descend(partial(loss, world), world.reference_SV, **options)


def compute_rewards(world, old_BT, beta):
    """The reward of each token, including the KL penalty."""
    reference_BT = tiny.logprobs(world, world.reference_SV)
    rewards_BT = advantages.terminal_rewards(world.scores_B, world.mask_BT)
    return kl.kl_in_reward(rewards_BT, old_BT, reference_BT, world.mask_BT, beta)


def ppo(world, logits_SV, beta=BETA, lam=0.95):
    """The loss of PPO after a rollout, with the exact value function."""
    logprobs_BT, old_BT, p_B = tiny.draw(world, logits_SV)
    rewards_BT = compute_rewards(world, old_BT, beta)
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
    compute_weights=reply_tokens.sequence_weights,
    objective=policy_losses.clipped,
    beta=BETA,
    size=2,
):
    """The loss of an algorithm with groups, over all groups of replies."""
    groups_NG = np.indices((len(world.scores_B),) * size).reshape(size, -1).T
    logprobs_BT, old_BT, p_B = tiny.draw(world, logits_SV)
    scores_B = jnp.sum(compute_rewards(world, old_BT, beta), axis=-1)
    advantages_NG = advantage(scores_B[groups_NG])

    rows = groups_NG.reshape(-1)
    mask_RT = world.mask_BT[rows]
    loss_RT, _ = objective(
        logprobs_BT[rows], old_BT[rows], advantages_NG.reshape(-1, 1), mask_RT
    )
    weights_RT, counts_R = compute_weights(mask_RT)
    p_R = jnp.repeat(jnp.prod(p_B[groups_NG], axis=-1), size)
    total = jnp.sum(p_R[:, None] * weights_RT * loss_RT)
    return total / jnp.sum(p_R * counts_R)


# For each name in the papers: advantage, normaliser, objective.
constant = lambda length: partial(reply_tokens.constant_weights, length=length)
dr_grpo = partial(grouped, advantage=advantages.dr_grpo, compute_weights=constant(3))
rloo = partial(
    grouped,
    advantage=advantages.rloo,
    compute_weights=constant(1),
    objective=policy_losses.reinforce,
)
ALGORITHMS = dict(
    reinforce=tiny.reinforce,
    ppo=ppo,
    grpo=grouped,
    dr_grpo=dr_grpo,
    dapo=partial(
        grouped,
        compute_weights=reply_tokens.token_weights,
        objective=partial(policy_losses.clipped, low=0.2, high=0.28),
    ),
    gspo=partial(grouped, objective=policy_losses.gspo),
    rloo=rloo,
)


def test_the_start_is_not_the_optimum():
    for world in (TREE, BANDIT):
        with pytest.raises(AssertionError):
            tiny.assert_optimal(world, world.reference_SV)


@pytest.mark.parametrize('name', ALGORITHMS)
def test_kl_in_the_reward(name):
    tiny.assert_optimal(TREE, solve(TREE, ALGORITHMS[name]))


@pytest.mark.slow
@pytest.mark.parametrize('name', ALGORITHMS)
def test_without_kl_the_best_reply_wins(name):
    loss = partial(ALGORITHMS[name], beta=0.0)
    p_B = tiny.probabilities(TREE, solve(TREE, loss, steps=600, rate=0.2))
    assert p_B[np.argmax(TREE.scores_B)] > 0.95


@pytest.mark.slow
def test_a_larger_group():
    tiny.assert_optimal(BANDIT, solve(BANDIT, partial(grouped, size=4)))


# ---- the KL in the loss (test_known_bugs_kl.py has replies of one token)

with_k2 = partial(tiny.reinforce, beta=0.0, loss_beta=BETA)


def test_k2_as_the_loss_of_whole_replies():
    loss = partial(with_k2, kl_loss=kl.reply_kl_loss)
    for world in (BANDIT, TREE):
        tiny.assert_optimal(world, solve(world, loss))


def test_k2_of_each_token_has_another_optimum():
    """p(a | s) ~ q(a | s) exp(Q(s, a) / beta), where Q leaves out the later KL."""
    logits_SV = solve(TREE, with_k2)
    with pytest.raises(AssertionError):
        tiny.assert_optimal(TREE, logits_SV)
    scores_BT = advantages.terminal_rewards(TREE.scores_B, TREE.mask_BT)
    values_S = tiny.values(TREE, logits_SV, scores_BT)
    # Q is the score if the reply ends here, otherwise the value of the next prefix.
    next_BT = np.roll(values_S[TREE.prefixes_BT], -1, axis=1)
    q_BT = np.where(reply_tokens.last_token_mask(TREE.mask_BT), scores_BT, next_BT)
    q_SV = np.zeros(TREE.reference_SV.shape, np.float32)
    q_SV[TREE.prefixes_BT[TREE.mask_BT], TREE.targets_BT[TREE.mask_BT]] = q_BT[
        TREE.mask_BT
    ]
    expected_SV = jax.nn.softmax(TREE.reference_SV + q_SV / BETA)
    np.testing.assert_allclose(jax.nn.softmax(logits_SV), expected_SV, atol=0.01)


# ---- gradients, against autodiff of E[score] - beta KL


def ascent(loss):
    """Minus the gradient of a loss."""
    return -jax.jit(jax.grad(partial(loss, TREE)))(POLICY_SV)


def exact_gradient():
    return jax.jit(jax.grad(tiny.objective, argnums=1))(TREE, POLICY_SV, BETA)


reply_means = partial(grouped, advantage=advantages.rloo)


@pytest.mark.parametrize(
    'loss, scale',
    (
        (partial(ppo, lam=0.0), 1.0),
        (partial(ppo, lam=0.5), 1.0),
        (partial(ppo, lam=1.0), 1.0),
        (tiny.reinforce, 1.0),
        (rloo, 1.0),
        # The constant is 3, the maximum length; the mean of a group includes the reply.
        (dr_grpo, 1 / 3 * 1 / 2),
        (partial(dr_grpo, size=3), 1 / 3 * 2 / 3),
        (partial(reply_means, compute_weights=reply_tokens.token_weights), None),
    ),
)
def test_the_gradient_is_exact_up_to_its_scale(loss, scale):
    if scale is None:  # 1 / mean length
        scale = 1 / (tiny.probabilities(TREE, POLICY_SV) @ TREE.mask_BT.sum(-1))
    expected_SV = scale * exact_gradient()
    # The gradients are about 0.1.
    np.testing.assert_allclose(ascent(loss), expected_SV, atol=2e-6)


def test_the_gradient_with_a_mean_for_each_reply_is_another():
    """The bias that Dr. GRPO removes: long wrong replies get a smaller penalty."""
    ours_SV, exact_SV = ascent(reply_means), exact_gradient()
    cosine = jnp.vdot(ours_SV, exact_SV) / (
        jnp.linalg.norm(ours_SV) * jnp.linalg.norm(exact_SV)
    )
    assert 0 < cosine < 0.999
    # On-policy, GSPO has the same gradient.
    gspo_SV = ascent(partial(reply_means, objective=policy_losses.gspo))
    np.testing.assert_allclose(ours_SV, gspo_SV, atol=1e-6)


# ---- PPO with learned values and several epochs per rollout


@pytest.mark.parametrize('lam', (0.0, 0.95))  # 0: only from its own estimates
def test_value_loss_finds_the_value_function(lam):
    _, old_BT, p_B = tiny.draw(TREE, POLICY_SV)
    rewards_BT = compute_rewards(TREE, old_BT, BETA)
    exact_S = tiny.values(TREE, POLICY_SV, rewards_BT)

    def loss(values_S):
        values_BT = values_S[TREE.prefixes_BT]
        _, returns_BT = advantages.gae(rewards_BT, values_BT, TREE.mask_BT, lam=lam)
        loss_BT, _ = policy_losses.value_loss(
            values_BT, values_BT, returns_BT, TREE.mask_BT, clip=0.2
        )
        return jnp.sum(p_B[:, None] * loss_BT)

    values_S = tiny.descend(loss, jnp.zeros_like(exact_S))
    np.testing.assert_allclose(values_S, exact_S, atol=0.01)


def test_ppo_with_learned_values_and_epochs():
    rollouts, epochs = 300, 4
    mask_BT = TREE.mask_BT
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, rollouts * epochs))

    def rollout(_, state):
        params, _ = state
        _, old_BT, p_B = tiny.draw(TREE, params['policy'])
        old_values_BT = params['values'][TREE.prefixes_BT]
        rewards_BT = compute_rewards(TREE, old_BT, BETA)
        advantages_BT, returns_BT = advantages.gae(rewards_BT, old_values_BT, mask_BT)
        advantages_BT = advantages.whiten(advantages_BT, mask_BT)

        def loss(params):
            logprobs_BT = tiny.logprobs(TREE, params['policy'])
            values_BT = params['values'][TREE.prefixes_BT]
            policy_BT, _ = policy_losses.clipped(
                logprobs_BT, old_BT, advantages_BT, mask_BT
            )
            value_BT, _ = policy_losses.value_loss(
                values_BT, old_values_BT, returns_BT, mask_BT, clip=0.5
            )
            return jnp.sum(p_B[:, None] * (policy_BT + value_BT))

        def epoch(_, state):
            params, moments = state
            updates, moments = optimizer.update(jax.grad(loss)(params), moments)
            return optax.apply_updates(params, updates), moments

        return jax.lax.fori_loop(0, epochs, epoch, state)

    params = dict(
        policy=jnp.asarray(TREE.reference_SV),
        values=jnp.zeros(TREE.reference_SV.shape[0]),
    )
    run = jax.jit(lambda state: jax.lax.fori_loop(0, rollouts, rollout, state))
    params, _ = run((params, optimizer.init(params)))
    tiny.assert_optimal(TREE, params['policy'])


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
    np.testing.assert_allclose(p_SV, jnp.full_like(p_SV, 1 / 3), atol=0.01)
