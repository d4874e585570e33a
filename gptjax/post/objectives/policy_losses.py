"""Losses of reinforcement learning for each token, to be minimised.

Each takes float32 arrays (B, T)

    logprobs_BT    ln p of the policy, with gradient
    old_BT         ln p of the policy that drew the replies, without gradient
    advantages_BT  from `advantages`, (B, T) or (B, 1)
    mask_BT        1 on the reply; elsewhere losses and metrics are 0

and returns (loss_BT, metrics); `reply_tokens.sum_losses` adds both up. The metrics are
(B, T) too. With r = exp(logprobs - old) they are

    ratio          r, which is 1 for the first minibatch after a rollout
    clip_fraction  1 where clipping removed the gradient
    approx_kl      r - 1 - ln r, never negative: k3 of (old policy, policy)
    advantage
"""

import jax
import jax.numpy as jnp

from gptjax.post.objectives.advantages import masked_moments
from gptjax.post.objectives.kl import k2, kl_loss
from gptjax.post.objectives.reply_tokens import reply_means


def clipped(logprobs_BT, old_BT, advantages_BT, mask_BT, low=0.2, high=0.2):
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7).

        -min(r A, clip(r, 1 - low, 1 + high) A)

    DAPO's clip-higher (Yu et al. 2025) has low 0.2 and high 0.28.
    """
    log_ratio_BT = _log_ratio(logprobs_BT, old_BT, mask_BT)
    return _surrogate(log_ratio_BT, log_ratio_BT, advantages_BT, mask_BT, low, high)


def gspo(logprobs_BT, old_BT, advantages_BT, mask_BT, low=3e-4, high=4e-4):
    """GSPO: the surrogate with one ratio per reply (Zheng et al. 2025, eq. 7 and 14).

        s = exp(mean over the reply of ln r)

    replaces each r; its gradient is s times the mean gradient of the tokens' ln p. The
    paper uses `sequence_weights`. s varies less than r, so low and high are smaller
    than PPO's. The metric `ratio` is s.
    """
    log_ratio_BT = _log_ratio(logprobs_BT, old_BT, mask_BT)
    reply_B1 = jax.lax.stop_gradient(reply_means(log_ratio_BT, mask_BT))[:, None]
    # The value is s, the gradient that of the token's own ln p. With weights 1 / n
    # these gradients add up to the gradient of s.
    log_s_BT = reply_B1 + log_ratio_BT - jax.lax.stop_gradient(log_ratio_BT)
    log_s_BT = jnp.where(mask_BT, log_s_BT, 0.0)
    return _surrogate(log_s_BT, log_ratio_BT, advantages_BT, mask_BT, low, high)


def reinforce(logprobs_BT, old_BT, advantages_BT, mask_BT):
    """-A ln p (Williams 1992). Nothing is clipped, so make one update per rollout.

    Only the metrics use `old_BT`.
    """
    advantages_BT = jax.lax.stop_gradient(advantages_BT)
    loss_BT = jnp.where(mask_BT, -advantages_BT * logprobs_BT, 0.0)
    log_ratio_BT = _log_ratio(logprobs_BT, old_BT, mask_BT)
    never_BT = jnp.zeros_like(loss_BT)
    return loss_BT, _metrics(
        log_ratio_BT, log_ratio_BT, never_BT, advantages_BT, mask_BT
    )


def value_loss(values_BT, old_values_BT, returns_BT, mask_BT, clip=0.0):
    """PPO's value loss (V - R)^2 / 2, clipped if `clip` is not 0:

        max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2

    Args:
        values_BT: V, with gradient.
        old_values_BT: V_old, the values at the rollout.
        returns_BT: R, from `advantages.gae`.

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


def add_kl_and_entropy(
    loss_BT,
    logprobs_BT,
    reference_BT,
    entropy_BT,
    mask_BT,
    entropy_coefficient,
    kl_coefficient=None,
    kl_estimator=k2,
):
    """Adds kl_coefficient x `kl.kl_loss` - entropy_coefficient x entropy to the loss.

    Args:
        entropy_BT: from `logprobs.token_logprobs`, with gradient.
        kl_coefficient: None leaves the KL out of the loss; it stays a metric.

    Returns:
        (loss, dict(entropy, kl_loss)), each (B, T).
    """
    kl_BT = kl_loss(logprobs_BT, reference_BT, mask_BT, kl_estimator)
    if kl_coefficient is not None:
        loss_BT += kl_coefficient * kl_BT
    loss_BT += jnp.where(mask_BT, -entropy_coefficient * entropy_BT, 0.0)
    return loss_BT, dict(entropy=entropy_BT, kl_loss=kl_BT)


def explained_variance(values_BT, returns_BT, mask_BT):
    """1 - Var(R - V) / Var(R) over the mask, a float32 scalar; 0 if all R are equal."""
    _, unexplained = masked_moments(returns_BT - values_BT, mask_BT)
    _, variance = masked_moments(returns_BT, mask_BT)
    share = unexplained / jnp.where(variance > 0, variance, 1.0)
    return jnp.where(variance > 0, 1.0 - share, 0.0)


def _log_ratio(logprobs_BT, old_BT, mask_BT):
    """ln r inside the mask, else 0: padding may hold any value."""
    return jnp.where(mask_BT, logprobs_BT - jax.lax.stop_gradient(old_BT), 0.0)


def _surrogate(log_used_BT, log_ratio_BT, advantages_BT, mask_BT, low, high):
    """-min(u A, clip(u) A) and metrics, where u = exp(log_used) is r or GSPO's s."""
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
