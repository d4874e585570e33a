"""Advantages: how much better a reply is than expected.

GAE compares with a value function at each token, the others with the replies of a
group. No gradient flows through an advantage, a return or a baseline.
"""

import jax
import jax.numpy as jnp

from gptjax.post.objectives.reply_tokens import last_token_mask
from gptjax.post.objectives.score_shaping import as_scores

# Scores of a group count as equal if they differ by less than this, relative to the
# largest one if that is above 1. Divided by their standard deviation, mere rounding
# errors would become advantages of 1.
EQUAL = 1e-4


def terminal_rewards(scores_B, mask_BT):
    """Puts each reply's score on the reply's last token: float32 (B, T), else 0.

        score 0.7, mask 0 1 1 0  ->  0 0 0.7 0

    Args:
        scores_B: any numeric dtype.
        mask_BT: 1 on the reply and the token that ends it.
    """
    return jnp.where(last_token_mask(mask_BT), as_scores(scores_B)[:, None], 0.0)


def gae(rewards_BT, values_BT, mask_BT, gamma=1.0, lam=0.95):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

        delta[t] = r[t] + gamma V[t + 1] - V[t]
        A[t]     = delta[t] + gamma lam A[t + 1]

    t + 1 is the next token inside the mask. After the last one V and A are 0, for
    truncated replies too; values on padding are never read.

    Args:
        values_BT: V[t] is the value of the text before `targets[t]`.
        gamma: discount; 1 is usual for language models.
        lam: 1 gives return - value, 0 gives delta.

    Returns:
        (advantages, returns), both float32 (B, T) and 0 outside the mask. The returns
        A + V are the targets of the value function.
    """
    mask_BT = jnp.asarray(mask_BT) != 0

    def back(following, now):
        next_value_B, next_advantage_B = following
        reward_B, value_B, mask_B = now
        delta_B = reward_B + gamma * next_value_B - value_B
        advantage_B = delta_B + gamma * lam * next_advantage_B
        following = (
            jnp.where(mask_B, value_B, next_value_B),
            jnp.where(mask_B, advantage_B, next_advantage_B),
        )
        return following, jnp.where(mask_B, advantage_B, 0.0)

    rewards_BT = as_scores(rewards_BT)
    values_BT = jax.lax.stop_gradient(as_scores(values_BT))
    nothing_B = jnp.zeros(mask_BT.shape[0], jnp.float32)
    _, advantages_TB = jax.lax.scan(
        back,
        (nothing_B, nothing_B),
        (rewards_BT.T, values_BT.T, mask_BT.T),
        reverse=True,
    )
    advantages_BT = advantages_TB.T
    return advantages_BT, jnp.where(mask_BT, advantages_BT + values_BT, 0.0)


def whiten(x_BT, mask_BT, shift_mean=True):
    """Scales to unit variance over the mask; 0 outside it.

    The mean becomes 0, or stays if `shift_mean` is False. Give a whole rollout:
    advantages that are whitened in parts cannot be compared. Values that are all
    equal are not scaled, and centred they are exactly 0.
    """
    mask_BT = jnp.asarray(mask_BT) != 0
    mean, variance = masked_moments(x_BT, mask_BT)
    largest = jnp.max(jnp.where(mask_BT, x_BT, -jnp.inf))
    smallest = jnp.min(jnp.where(mask_BT, x_BT, jnp.inf))
    mean = jnp.where(largest == smallest, largest, mean)
    centred_BT = (x_BT - mean) / jnp.where(variance > EQUAL**2, jnp.sqrt(variance), 1.0)
    return jnp.where(mask_BT, centred_BT if shift_mean else centred_BT + mean, 0.0)


def masked_moments(x_BT, mask_BT):
    """(mean, variance) over the mask, float32 scalars."""
    mask_BT = jnp.asarray(mask_BT) != 0
    count = jnp.maximum(jnp.sum(mask_BT), 1)
    mean = jnp.sum(jnp.where(mask_BT, x_BT, 0.0)) / count
    return mean, jnp.sum(jnp.where(mask_BT, jnp.square(x_BT - mean), 0.0)) / count


# ---- advantages within a group
#
# scores_NG, of any numeric dtype, has the scores of G replies to each of N prompts. All
# tokens of a reply have the same advantage: `.reshape(-1, 1)` gives the (B, 1) array
# that `policy_losses` takes, in the order prompt, reply.


def grpo(scores_NG):
    """(s - mean) / std within each group (Shao et al. 2024), float32 (N, G).

    std is the population's standard deviation. Groups of equal scores get 0.
    """
    scores_NG = _groups(scores_NG)
    std_N1 = jnp.std(scores_NG, axis=-1, keepdims=True)
    informative_N1 = informative(scores_NG)[:, None]
    scaled_NG = _centred(scores_NG) / jnp.where(informative_N1, std_N1, 1.0)
    return jnp.where(informative_N1, scaled_NG, 0.0)


def dr_grpo(scores_NG):
    """s - mean within each group (Liu et al. 2025), float32 (N, G).

    Without the division by std, easy and hard prompts have no larger weight.
    """
    return _centred(_groups(scores_NG))


def rloo(scores_NG):
    """s - mean of the other replies' s (Ahmadian et al. 2024), float32 (N, G).

        s[g] - sum over h != g of s[h] / (G - 1) = G / (G - 1) (s[g] - mean)

    The baseline does not depend on reply g, so the gradient is unbiased.
    """
    scores_NG = _groups(scores_NG)
    G = scores_NG.shape[-1]
    return _centred(scores_NG) * (G / (G - 1))


def reinforce(scores, baseline=None):
    """s - baseline (Williams 1992), float32, in the shape of the scores.

    Args:
        baseline: the mean of earlier batches (`RunningMoments.mean`) keeps the
            gradient unbiased; None uses the mean of these scores.
    """
    scores = as_scores(scores)
    return _centred(scores, axis=None) if baseline is None else scores - baseline


def informative(scores_NG):
    """Which groups have scores that differ: bool (N,).

    The other groups have no gradient; DAPO's dynamic sampling (Yu et al. 2025, eq. 11)
    replaces them.
    """
    scores_NG = as_scores(scores_NG)
    spread_N = jnp.max(scores_NG, axis=-1) - jnp.min(scores_NG, axis=-1)
    largest_N = jnp.max(jnp.abs(scores_NG), axis=-1)
    return spread_N > EQUAL * jnp.maximum(largest_N, 1.0)


def _groups(scores_NG):
    scores_NG = as_scores(scores_NG)
    if scores_NG.ndim != 2 or scores_NG.shape[1] < 2:
        raise ValueError(
            f'scores_NG has shape {scores_NG.shape}: give at least 2 replies a prompt'
        )
    return scores_NG


def _centred(scores, axis=-1):
    """scores - mean, exactly 0 if all are equal: Adam would scale up the rounding."""
    mean = jnp.mean(scores, axis=axis, keepdims=True)
    smallest = jnp.min(scores, axis=axis, keepdims=True)
    equal = jnp.max(scores, axis=axis, keepdims=True) == smallest
    return scores - jnp.where(equal, smallest, mean)
