"""Worlds so small that all replies can be written down, and expectations are sums.

A reply is drawn token by token until END, or until it is as long as allowed. The
policy is a table: logits for each prefix that a reply can have. A world of one token
is a bandit.
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.models import gpt
from gptjax.post.objectives.logprobs import token_logprobs
from gptjax.post.objectives.reply_tokens import reply_sums
from tests import helpers

END = 0  # and padding as well: nothing may tell them apart by their id


class World(NamedTuple):
    """All replies of a world: B rows.

    targets_BT: int32, padded with END.
    mask_BT: bool, the reply with its END.
    prefixes_BT: int32, the row of the policy's table that each target is drawn from;
        0 on padding.
    scores_B: float32, the reward of each reply.
    reference_SV: float32 logits, a policy to stay near.
    """

    targets_BT: np.ndarray
    mask_BT: np.ndarray
    prefixes_BT: np.ndarray
    scores_B: np.ndarray
    reference_SV: np.ndarray


def make_world(vocab=3, longest=3, seed=0) -> World:
    """With random scores and a random reference; 15 replies as it is."""
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
    """ln p of each target, (B, T), with something that is not 0 on padding."""
    table_SV = jax.nn.log_softmax(logits_SV / temperature)
    return table_SV[world.prefixes_BT, world.targets_BT]


def log_replies(world: World, logits_SV):
    """ln p of each reply, (B,)."""
    return reply_sums(logprobs(world, logits_SV), world.mask_BT)


def probabilities(world: World, logits_SV):
    """p of each reply, (B,); they add up to 1."""
    return jnp.exp(log_replies(world, logits_SV))


def reply_kl(world: World, logits_SV, reference_SV=None):
    """KL(p, q) of whole replies, differentiable; q is the world's reference."""
    reference_SV = world.reference_SV if reference_SV is None else reference_SV
    log_p, log_q = (log_replies(world, x) for x in (logits_SV, reference_SV))
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q))


def objective(world: World, logits_SV, beta=0.0):
    """E[score] - beta KL, differentiable: what all algorithms are to maximise."""
    expected = jnp.sum(probabilities(world, logits_SV) * world.scores_B)
    return expected - beta * reply_kl(world, logits_SV)


def optimum(world: World, beta):
    """The policy that maximises it: p(y) ~ q(y) exp(score(y) / beta), (B,)."""
    return jax.nn.softmax(
        log_replies(world, world.reference_SV) + world.scores_B / beta
    )


def values(world: World, logits_SV, rewards_BT):
    """The expected sum of rewards still to come at each prefix, by enumeration: (S,).

    Rewards belong to the token drawn, so that replies with a prefix in common have
    the same before it.
    """
    p_B1 = probabilities(world, logits_SV)[:, None]
    rewards_BT = jnp.where(world.mask_BT, rewards_BT, 0.0)
    to_come_BT = jnp.cumsum(rewards_BT[:, ::-1], axis=-1)[:, ::-1]
    reached_BT = jnp.where(world.mask_BT, p_B1, 0.0)
    nothing_S = jnp.zeros(world.reference_SV.shape[0])
    expected_S = nothing_S.at[world.prefixes_BT].add(reached_BT * to_come_BT)
    return expected_S / nothing_S.at[world.prefixes_BT].add(reached_BT)


def all_groups(world: World, size: int):
    """Every group of `size` replies in every order: int32 (N, size)."""
    return np.indices((len(world.scores_B),) * size).reshape(size, -1).T


def descend(loss, params, steps=400, rate=0.1):
    """Minimises by Adam, the rate falling to 0; `loss(params)` need only have the
    right gradient."""
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


# A model as small, for what only a model has: soft cap, dropout, hidden vectors.
MODEL = dict(num_layers=1, init_std=0.3, residual_dropout=0.3, logit_softcap=3.0)
SETTINGS = helpers.model_settings(**MODEL)
BATCH = helpers.packed_batch(batch=4)
compute = jax.jit(token_logprobs, static_argnums=0, static_argnames='chunk')


@cache
def params():
    return jax.jit(partial(gpt.init_params, SETTINGS))(jax.random.key(0))


def expected_gradient(world: World, logits_SV, loss):
    """Minus the gradient of E[sum over tokens of a loss], as an update would have it.

    Args:
        logits_SV: the policy that replies are drawn from and that is differentiated.
        loss: from (logprobs_BT, the same without gradient) to loss_BT.
    """
    p_B = probabilities(world, logits_SV)

    def total(logits_SV):
        logprobs_BT = logprobs(world, logits_SV)
        loss_BT = loss(logprobs_BT, jax.lax.stop_gradient(logprobs_BT))
        return jnp.sum(p_B[:, None] * jnp.where(world.mask_BT, loss_BT, 0.0))

    return -jax.jit(jax.grad(total))(jnp.asarray(logits_SV))


def refuses(check, *wrong):
    """`check`, which ours passes, fails for each of these."""
    for implementation in wrong:
        with pytest.raises(AssertionError):
            check(implementation)
