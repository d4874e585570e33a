"""Losses of reinforcement learning, token by token, to be minimised.

Each takes and returns arrays of one shape, (B, T) float32:

    logprobs_BT    of the policy, with gradient
    old_BT         of the policy that drew the replies, without
    advantages_BT  of `advantages`, (B, T) or (B, 1)
    mask_BT        of the reply; outside it losses and metrics are 0

and returns (loss_BT, metrics), the metrics (B, T) as well. `reply_tokens` adds them
up. With r = exp(logprobs - old), the metrics are

    ratio          r, 1 for the first minibatch after a rollout
    clip_fraction  1 where clipping took the gradient away
    approx_kl      r - 1 - ln r, never negative: k3 of (old, policy)
    advantage
"""

import jax
import jax.numpy as jnp

from gptjax.post.objectives.advantages import masked_moments
from gptjax.post.objectives.kl import kl_loss
from gptjax.post.objectives.reply_tokens import reply_means


def clipped(logprobs_BT, old_BT, advantages_BT, mask_BT, low=0.2, high=0.2):
    """PPO's surrogate (Schulman et al. 2017, eq. 7).

        -min(r A, clip(r, 1 - low, 1 + high) A)

    Args:
        low, high: how far a ratio may fall and rise before nothing is gained;
            DAPO's clip-higher has 0.2 and 0.28.
    """
    log_ratio_BT = _log_ratio(logprobs_BT, old_BT, mask_BT)
    return _surrogate(log_ratio_BT, log_ratio_BT, advantages_BT, mask_BT, low, high)


def gspo(logprobs_BT, old_BT, advantages_BT, mask_BT, low=3e-4, high=4e-4):
    """The surrogate with one ratio a reply (Zheng et al. 2025, eq. 7 and 14).

        s = exp(mean over the reply of ln r)

    in place of each r; its gradient is s times the mean of the tokens' gradients of
    ln p. For `sequence_weights`, as in the paper. The metric `ratio` is s.

    Args:
        low, high: s moves less than r does, so they are smaller than PPO's.
    """
    log_ratio_BT = _log_ratio(logprobs_BT, old_BT, mask_BT)
    reply_B1 = jax.lax.stop_gradient(reply_means(log_ratio_BT, mask_BT))[:, None]
    # The value of s, and the gradient of the token's own ln p: over 1 / n weights
    # these add up to the gradient of s.
    log_s_BT = reply_B1 + log_ratio_BT - jax.lax.stop_gradient(log_ratio_BT)
    log_s_BT = jnp.where(mask_BT, log_s_BT, 0.0)
    return _surrogate(log_s_BT, log_ratio_BT, advantages_BT, mask_BT, low, high)


def reinforce(logprobs_BT, old_BT, advantages_BT, mask_BT):
    """-A ln p (Williams 1992): one update for each rollout, as nothing is clipped.

    `old_BT` is for the metrics alone.
    """
    advantages_BT = jax.lax.stop_gradient(advantages_BT)
    loss_BT = jnp.where(mask_BT, -advantages_BT * logprobs_BT, 0.0)
    log_ratio_BT = _log_ratio(logprobs_BT, old_BT, mask_BT)
    never_BT = jnp.zeros_like(loss_BT)
    return loss_BT, _metrics(
        log_ratio_BT, log_ratio_BT, never_BT, advantages_BT, mask_BT
    )


def value_loss(values_BT, old_values_BT, returns_BT, mask_BT, clip=0.0):
    """(V - R)^2 / 2, or the larger of that and the same with V kept near the old one.

    Args:
        values_BT: with gradient.
        old_values_BT: of the rollout.
        returns_BT: of `advantages.gae`.
        clip: how far V may move from the old value before nothing is gained, in
            units of reward; 0: anywhere.

    Returns:
        (loss, dict(value_clip_fraction)), each (B, T).
    """
    returns_BT = jax.lax.stop_gradient(returns_BT)
    loss_BT = 0.5 * jnp.square(values_BT - returns_BT)
    clipped_BT = jnp.zeros(loss_BT.shape, bool)
    if clip:
        old_values_BT = jax.lax.stop_gradient(old_values_BT)
        near_BT = jnp.clip(values_BT, old_values_BT - clip, old_values_BT + clip)
        near_loss_BT = 0.5 * jnp.square(near_BT - returns_BT)
        clipped_BT = near_loss_BT > loss_BT
        loss_BT = jnp.maximum(loss_BT, near_loss_BT)
    fraction_BT = jnp.where(mask_BT, clipped_BT, False).astype(jnp.float32)
    return jnp.where(mask_BT, loss_BT, 0.0), dict(value_clip_fraction=fraction_BT)


def entropy_bonus(entropy_BT, mask_BT, coefficient):
    """-coefficient x entropy (B, T), to be added to a loss.

    Args:
        entropy_BT: of `logprobs.token_logprobs`, with gradient.
    """
    return jnp.where(mask_BT, -coefficient * entropy_BT, 0.0)


def add_kl_and_entropy(
    loss_BT,
    logprobs_BT,
    reference_BT,
    entropy_BT,
    mask_BT,
    entropy_coefficient,
    kl_coefficient=None,
):
    """(the loss with KL and entropy terms, metrics), each (B, T).

    Args:
        kl_coefficient: of `kl.kl_loss`; None: the KL is a metric alone.
    """
    kl_BT = kl_loss(logprobs_BT, reference_BT, mask_BT)
    if kl_coefficient is not None:
        loss_BT += kl_coefficient * kl_BT
    loss_BT += entropy_bonus(entropy_BT, mask_BT, entropy_coefficient)
    return loss_BT, dict(entropy=entropy_BT, kl_loss=kl_BT)


def explained_variance(values_BT, returns_BT, mask_BT):
    """1 - Var(R - V) / Var(R) over the mask, a float32 scalar; 0 if all R are equal.

    Of a rollout, with the values that were computed for it.
    """
    _, unexplained = masked_moments(returns_BT - values_BT, mask_BT)
    _, variance = masked_moments(returns_BT, mask_BT)
    share = unexplained / jnp.where(variance > 0, variance, 1.0)
    return jnp.where(variance > 0, 1.0 - share, 0.0)


def _log_ratio(logprobs_BT, old_BT, mask_BT):
    """ln r, and 0 outside the mask, where padding may hold anything."""
    return jnp.where(mask_BT, logprobs_BT - jax.lax.stop_gradient(old_BT), 0.0)


def _surrogate(log_used_BT, log_ratio_BT, advantages_BT, mask_BT, low, high):
    """-min(u A, clip(u) A) and metrics, with u = exp(log_used)."""
    advantages_BT = jax.lax.stop_gradient(advantages_BT)
    used_BT = jnp.exp(log_used_BT)
    free_BT = used_BT * advantages_BT
    kept_BT = jnp.clip(used_BT, 1.0 - low, 1.0 + high) * advantages_BT
    loss_BT = jnp.where(mask_BT, -jnp.minimum(free_BT, kept_BT), 0.0)
    return loss_BT, _metrics(
        log_used_BT, log_ratio_BT, kept_BT < free_BT, advantages_BT, mask_BT
    )


def _metrics(log_used_BT, log_ratio_BT, clipped_BT, advantages_BT, mask_BT):
    metrics = dict(
        ratio=jnp.exp(log_used_BT),
        clip_fraction=clipped_BT.astype(jnp.float32),
        approx_kl=jnp.expm1(log_ratio_BT) - log_ratio_BT,
        advantage=jnp.broadcast_to(advantages_BT, log_ratio_BT.shape),
    )
    return jax.tree.map(
        lambda x: jax.lax.stop_gradient(jnp.where(mask_BT, x, 0.0)), metrics
    )
