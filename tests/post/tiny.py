"""Worlds: problems so small that all replies can be listed and expectations are sums.

A reply ends with END or at the maximum length. The policy is a table of logits with one
row for each prefix of a reply. A world whose replies have one token is a bandit.
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.models import gpt
from gptjax.post.objectives import advantages, kl, policy_losses
from gptjax.post.objectives.logprobs import token_logprobs
from gptjax.post.objectives.reply_tokens import reply_sums
from tests import helpers

END = 0  # also the id of padding, so no code can distinguish them by id
BETA = 0.5  # coefficient of the KL


class World(NamedTuple):
    """All B replies of a world.

    targets_BT: int32, padded with END.
    mask_BT: bool, the reply and END.
    prefixes_BT: int32, the row of the policy from which each target is sampled; 0 for
        padding.
    scores_B: float32.
    reference_SV: float32 logits of the reference policy.
    """

    targets_BT: np.ndarray
    mask_BT: np.ndarray
    prefixes_BT: np.ndarray
    scores_B: np.ndarray
    reference_SV: np.ndarray


def make_world(vocab=3, longest=3, seed=0) -> World:
    """A world with random scores and reference policy; 15 replies by default."""
    replies, prefixes = [], {}

    def grow(prefix):
        prefixes[prefix] = len(prefixes)
        for token in range(vocab):
            reply = (*prefix, token)
            if token == END or len(reply) == longest:
                replies.append(reply)
            else:
                grow(reply)

    grow(())
    shape = (len(replies), longest)
    targets, mask = np.full(shape, END, np.int32), np.zeros(shape, bool)
    rows = np.zeros(shape, np.int32)
    for number, reply in enumerate(replies):
        targets[number, : len(reply)] = reply
        mask[number, : len(reply)] = True
        rows[number, : len(reply)] = [prefixes[reply[:t]] for t in range(len(reply))]
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=len(replies)).astype(np.float32)
    reference = rng.normal(size=(len(prefixes), vocab)).astype(np.float32)
    return World(targets, mask, rows, scores, reference)


def bandit(arms=4, seed=0) -> World:
    return make_world(arms, longest=1, seed=seed)


def logprobs(world: World, logits_SV, temperature=1.0):
    """ln p of each target, (B, T); not 0 on padding."""
    table_SV = jax.nn.log_softmax(logits_SV / temperature)
    return table_SV[world.prefixes_BT, world.targets_BT]


def log_replies(world: World, logits_SV):
    """ln p of each reply, (B,)."""
    return reply_sums(logprobs(world, logits_SV), world.mask_BT)


def probabilities(world: World, logits_SV):
    """p of each reply, (B,)."""
    return jnp.exp(log_replies(world, logits_SV))


def reply_kl(world: World, logits_SV, reference_SV=None):
    """KL(p, q) of whole replies, differentiable; q is the world's reference."""
    reference_SV = world.reference_SV if reference_SV is None else reference_SV
    log_p, log_q = (log_replies(world, x) for x in (logits_SV, reference_SV))
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q))


def objective(world: World, logits_SV, beta=0.0):
    """E[score] - beta KL, differentiable: all algorithms must maximise it."""
    expected = jnp.sum(probabilities(world, logits_SV) * world.scores_B)
    return expected - beta * reply_kl(world, logits_SV)


def optimum(world: World, beta):
    """The policy that maximises `objective`: p(y) ~ q(y) exp(score(y) / beta), (B,)."""
    return jax.nn.softmax(
        log_replies(world, world.reference_SV) + world.scores_B / beta
    )


def values(world: World, logits_SV, rewards_BT):
    """The exact value function: the expected rewards after each prefix, (S,)."""
    p_B1 = probabilities(world, logits_SV)[:, None]
    rewards_BT = jnp.where(world.mask_BT, rewards_BT, 0.0)
    to_come_BT = jnp.cumsum(rewards_BT[:, ::-1], axis=-1)[:, ::-1]
    reached_BT = jnp.where(world.mask_BT, p_B1, 0.0)
    nothing_S = jnp.zeros(world.reference_SV.shape[0])
    expected_S = nothing_S.at[world.prefixes_BT].add(reached_BT * to_come_BT)
    return expected_S / nothing_S.at[world.prefixes_BT].add(reached_BT)


def draw(world: World, logits_SV):
    """(ln p with gradient, ln p without, probability) of each reply, on policy."""
    logprobs_BT = logprobs(world, logits_SV)
    p_B = jax.lax.stop_gradient(probabilities(world, logits_SV))
    return logprobs_BT, jax.lax.stop_gradient(logprobs_BT), p_B


def reinforce(
    world: World,
    logits_SV,
    beta=BETA,
    loss_beta=0.0,
    kl_loss=kl.kl_loss,
    reference_BT=None,
    mask_BT=None,
):
    """The expected loss of REINFORCE, with the expected score as baseline.

    `beta` is the coefficient of the KL in the reward, `loss_beta` of `kl_loss`.
    """
    if reference_BT is None:
        reference_BT = logprobs(world, world.reference_SV)
    mask_BT = world.mask_BT if mask_BT is None else mask_BT
    logprobs_BT, old_BT, p_B = draw(world, logits_SV)
    scores_B = kl.kl_in_score(world.scores_B, old_BT, reference_BT, mask_BT, beta)
    advantages_B = advantages.reinforce(scores_B, jnp.sum(p_B * scores_B))
    loss_BT, _ = policy_losses.reinforce(
        logprobs_BT, old_BT, advantages_B[:, None], mask_BT
    )
    loss_BT += loss_beta * kl_loss(logprobs_BT, reference_BT, mask_BT)
    return jnp.sum(p_B[:, None] * loss_BT)


def descend(loss, params, steps=400, rate=0.1):
    """Minimises `loss(params)` by Adam; the learning rate falls to 0."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def run(params):
        def step(_, state):
            params, moments = state
            updates, moments = optimizer.update(jax.grad(loss)(params), moments)
            return optax.apply_updates(params, updates), moments

        state = (params, optimizer.init(params))
        return jax.lax.fori_loop(0, steps, step, state)[0]

    return run(jax.tree.map(jnp.asarray, params))


def assert_optimal(world: World, logits_SV, beta=BETA):
    """Adam stops within about 0.01 of the optimum."""
    np.testing.assert_allclose(
        probabilities(world, logits_SV), optimum(world, beta), atol=0.01
    )


# A model, for properties that a table of logits lacks: soft cap, dropout, hidden
# states.
MODEL = dict(num_layers=1, init_std=0.3, residual_dropout=0.3, logit_softcap=3.0)
SETTINGS = helpers.model_settings(**MODEL)
BATCH = helpers.packed_batch(batch=4)
compute = jax.jit(token_logprobs, static_argnums=0, static_argnames='chunk')


@cache
def params():
    return jax.jit(partial(gpt.init_params, SETTINGS))(jax.random.key(0))


def expected_gradient(world: World, logits_SV, loss):
    """Minus the gradient of E[sum over tokens of a loss], on policy.

    Args:
        loss: (logprobs_BT, the same without gradient) -> loss_BT.
    """

    def total(logits_SV):
        logprobs_BT, old_BT, p_B = draw(world, logits_SV)
        loss_BT = loss(logprobs_BT, old_BT)
        return jnp.sum(p_B[:, None] * jnp.where(world.mask_BT, loss_BT, 0.0))

    return -jax.jit(jax.grad(total))(jnp.asarray(logits_SV))


def refuses(check, *wrong):
    """Asserts that `check` fails for each wrong implementation."""
    for implementation in wrong:
        with pytest.raises(AssertionError):
            check(implementation)
