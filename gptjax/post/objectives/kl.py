"""KL(policy, reference): estimators, reward penalties, losses and the controller.

With d = ln p - ln q of a token drawn from the policy p, where q is the reference
(Schulman 2020, Approximating KL divergence):

            formula         as an estimate     the gradient, as a loss
    k1      d               unbiased           0 on average
    k2      d^2 / 2         biased             of KL(p, q)
    k3      e^-d - 1 + d    unbiased, >= 0     of KL(q, p), the other direction

So the reward needs k1 and the loss needs k2. Use one of them: both together count the
KL twice. k3 is for reports (GRPO's paper has it in the loss, see `k3_loss`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax.post.objectives.reply_tokens import reply_sums
from gptjax.post.objectives.score_shaping import as_scores


def k1(logprobs_BT, reference_BT):
    """ln p - ln q of each token."""
    return logprobs_BT - reference_BT


def k2(logprobs_BT, reference_BT):
    """(ln p - ln q)^2 / 2 of each token."""
    return 0.5 * jnp.square(logprobs_BT - reference_BT)


def k3(logprobs_BT, reference_BT):
    """q / p - 1 - ln(q / p) of each token; never negative."""
    log_ratio_BT = reference_BT - logprobs_BT
    return jnp.expm1(log_ratio_BT) - log_ratio_BT


def kl_per_reply(logprobs_BT, reference_BT, mask_BT):
    """k1 summed over each reply, float32 (B,); the mean estimates the KL of replies.

    `AdaptiveKL` and plots of reward over the square root of KL use this KL.
    """
    return reply_sums(k1(logprobs_BT, reference_BT), mask_BT)


def kl_in_reward(rewards_BT, logprobs_BT, reference_BT, mask_BT, coefficient):
    """rewards - coefficient x k1 of each token; no gradient flows.

    The expected sum is largest for p(y) ~ q(y) exp(r(y) / coefficient).

    Args:
        rewards_BT: from `advantages.terminal_rewards`.
        logprobs_BT, reference_BT: ln p of the policy that drew the replies, and ln q,
            at the same temperature.
    """
    penalty_BT = coefficient * k1(logprobs_BT, reference_BT)
    rewards_BT = as_scores(rewards_BT) - penalty_BT
    return jax.lax.stop_gradient(jnp.where(mask_BT, rewards_BT, 0.0))


def kl_in_score(scores_B, logprobs_BT, reference_BT, mask_BT, coefficient):
    """scores - coefficient x the sum of k1 over each reply, (B,)."""
    penalty_B = coefficient * kl_per_reply(logprobs_BT, reference_BT, mask_BT)
    return jax.lax.stop_gradient(as_scores(scores_B) - penalty_B)


def kl_loss(logprobs_BT, reference_BT, mask_BT):
    """k2 (B, T): the loss with the gradient of each token's KL, given the prefix.

    It ignores that a token leads to later tokens where the policies differ. So the
    optimum is that of `kl_in_reward` only for replies of one token; `reply_kl_loss`
    has this optimum for all replies.
    """
    return jnp.where(mask_BT, k2(logprobs_BT, reference_BT), 0.0)


def reply_kl_loss(logprobs_BT, reference_BT, mask_BT):
    """k2 of whole replies (B, T): the sum over T has the gradient of KL(p(y), q(y)).

    With d the sum of k1 over the reply, the sum over T is d^2 / 2, and the gradient at
    each token is d times the gradient of ln p.
    """
    per_token_BT = jnp.where(mask_BT, k1(logprobs_BT, reference_BT), 0.0)
    whole_B1 = jax.lax.stop_gradient(jnp.sum(per_token_BT, axis=-1, keepdims=True))
    still_BT = jax.lax.stop_gradient(per_token_BT)
    return whole_B1 * (per_token_BT - still_BT / 2)


def k3_loss(logprobs_BT, reference_BT, mask_BT):
    """k3 (B, T), the KL term of GRPO (Shao et al. 2024, eq. 4), to reproduce the paper.

    The gradient is that of KL(q, p): the policy must cover what the reference does.
    KL(p, q) instead keeps the policy away from what the reference does not do.
    """
    return jnp.where(mask_BT, k3(logprobs_BT, reference_BT), 0.0)


class AdaptiveKL(NamedTuple):
    """The coefficient that keeps the KL near a target (Ziegler et al. 2019, 2.2).

        error        = clip(KL / target - 1, -0.2, 0.2)
        coefficient *= 1 + error x min(replies / horizon, 1)

    target: KL in nats per reply, summed over tokens.
    horizon: number of replies in which an error of 0.2 changes the coefficient by
        20 %; 0 keeps the coefficient fixed.
    """

    coefficient: float
    target: float = 6.0
    horizon: float = 0.0

    def after(self, kl: float, replies: int) -> 'AdaptiveKL':
        """The controller after a batch of replies with the mean `kl` of `kl_per_reply`.

        This is the mean over replies of the SUM over tokens.
        """
        if not self.horizon:
            return self
        error = min(max(float(kl) / self.target - 1.0, -0.2), 0.2)
        scale = 1.0 + error * min(replies / self.horizon, 1.0)
        return self._replace(coefficient=self.coefficient * scale)
