"""How much better than expected: over time by a value function, or within a group.

No gradient flows through an advantage, a return or a baseline.
"""

import jax
import jax.numpy as jnp

from gptjax.post.objectives.reply_tokens import last_token_mask
from gptjax.post.objectives.score_shaping import as_scores

# Scores of a group that differ by less (relative to the largest, if that is above 1)
# are equal: divided by a standard deviation, their rounding would become advantages
# of 1.
EQUAL = 1e-4


def terminal_rewards(scores_B, mask_BT):
    """Each reply's score as the reward of its last token, 0 elsewhere: float32 (B, T).

    Args:
        scores_B: any numeric dtype.
        mask_BT: of the reply, the token that ends it included.
    """
    return jnp.where(last_token_mask(mask_BT), as_scores(scores_B)[:, None], 0.0)


def gae(rewards_BT, values_BT, mask_BT, gamma=1.0, lam=0.95):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

        delta[t] = r[t] + gamma V[t + 1] - V[t]
        A[t]     = delta[t] + gamma lam A[t + 1]

    t + 1 is the reply's next place, past any that the mask leaves out, and after
    its last V and A are 0: the value of padding is never read, and a truncated
    reply ends as any other.

    Args:
        rewards_BT: float32.
        values_BT: V[t] of what stands before `targets[t]`.
        mask_BT: of the reply.
        gamma: discount; 1 for replies.
        lam: 1: return less value, 0: delta alone.

    Returns:
        (advantages, returns), both float32 (B, T) and 0 outside the mask; the
        returns A + V are what the values should become.
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
    """Unit variance over the mask, and mean 0 or the mean that it had; 0 elsewhere.

    Over a whole rollout: whitened in parts, advantages of different parts would not
    compare. Where all are equal nothing is divided.

    Args:
        x_BT: advantages (or rewards, whose mean one may want to keep).
        mask_BT: of the reply.
    """
    mask_BT = jnp.asarray(mask_BT) != 0
    mean, variance = masked_moments(x_BT, mask_BT)
    centred_BT = (x_BT - mean) / jnp.where(variance > EQUAL**2, jnp.sqrt(variance), 1.0)
    return jnp.where(mask_BT, centred_BT if shift_mean else centred_BT + mean, 0.0)


def masked_moments(x_BT, mask_BT):
    """(mean, variance) over the mask, float32 scalars."""
    mask_BT = jnp.asarray(mask_BT) != 0
    count = jnp.maximum(jnp.sum(mask_BT), 1)
    mean = jnp.sum(jnp.where(mask_BT, x_BT, 0.0)) / count
    return mean, jnp.sum(jnp.where(mask_BT, jnp.square(x_BT - mean), 0.0)) / count


# Of scores_NG, any numeric dtype: the G replies to each of N prompts. An advantage is
# one number for all tokens of a reply: `.reshape(-1, 1)` is (B, 1), as objectives
# take it, for rows in the order prompt, reply.


def grpo(scores_NG):
    """(s - mean) / std within each group (Shao et al. 2024), float32 (N, G).

    The standard deviation is the population's; groups of equal scores get 0.
    """
    scores_NG = _groups(scores_NG)
    std_N1 = jnp.std(scores_NG, axis=-1, keepdims=True)
    # Where a group is left out the divisor is never 0.
    informative_N1 = informative(scores_NG)[:, None]
    scaled_NG = _centred(scores_NG) / jnp.where(informative_N1, std_N1, 1.0)
    return jnp.where(informative_N1, scaled_NG, 0.0)


def dr_grpo(scores_NG):
    """s - mean within each group (Liu et al. 2025), float32 (N, G).

    Not divided: neither easy nor hard prompts weigh more.
    """
    return _centred(_groups(scores_NG))


def rloo(scores_NG):
    """s - the mean of the others in the group (Ahmadian et al. 2024), float32 (N, G).

    The baseline does not depend on the reply, so the gradient is unbiased:
    s[g] - sum over h != g of s[h] / (G - 1) = G / (G - 1) (s[g] - mean).
    """
    scores_NG = _groups(scores_NG)
    G = scores_NG.shape[-1]
    return _centred(scores_NG) * (G / (G - 1))


def reinforce(scores, baseline=None):
    """s - baseline (Williams 1992), float32, of the scores' shape.

    Args:
        scores: any shape and numeric dtype.
        baseline: as `RunningMoments.mean` of earlier batches, which leaves the
            gradient unbiased; None: the mean of these.
    """
    scores = as_scores(scores)
    return scores - (jnp.mean(scores) if baseline is None else baseline)


def informative(scores_NG):
    """Which groups have scores that differ, bool (N,): the others teach nothing.

    DAPO's dynamic sampling (Yu et al. 2025, eq. 11) draws again for the rest.
    """
    scores_NG = as_scores(scores_NG)
    spread_N = jnp.max(scores_NG, axis=-1) - jnp.min(scores_NG, axis=-1)
    largest_N = jnp.max(jnp.abs(scores_NG), axis=-1)
    return spread_N > EQUAL * jnp.maximum(largest_N, 1.0)


def _groups(scores_NG):
    """As float32; a group of one has no one to be compared with."""
    scores_NG = as_scores(scores_NG)
    if scores_NG.ndim != 2 or scores_NG.shape[1] < 2:
        raise ValueError(
            f'scores_NG has shape {scores_NG.shape}: give at least 2 replies a prompt'
        )
    return scores_NG


def _centred(scores_NG):
    return scores_NG - jnp.mean(scores_NG, axis=-1, keepdims=True)
