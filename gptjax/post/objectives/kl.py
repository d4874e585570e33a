"""KL(policy, reference): estimators, where each belongs, and its controller.

With d = ln p - ln q of a token drawn from the policy p, and q the reference
(Schulman 2020, Approximating KL divergence):

            value        as a number        as a loss, its gradient is that of
    k1      d            unbiased           nothing: 0 on average
    k2      d^2 / 2      biased             KL(p, q)
    k3      e^-d - 1 + d unbiased, >= 0     KL(q, p), the other way round

So k1 belongs in the reward, where it is a number that the policy gradient weighs
with, and k2 in the loss; one of the two and never both, which would count the KL
twice. k3 is for reports (GRPO's paper has it in the loss: see `k3_loss`).
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
    """k1 summed over each reply, float32 (B,): its mean estimates the replies' KL.

    What `AdaptiveKL` steers and what plots over the square root of KL mean.
    """
    return reply_sums(k1(logprobs_BT, reference_BT), mask_BT)


def kl_in_reward(rewards_BT, logprobs_BT, reference_BT, mask_BT, coefficient):
    """Rewards less coefficient x k1, token by token; no gradient flows.

    The optimum of their expected sum is p(y) ~ q(y) exp(r(y) / coefficient).

    Args:
        rewards_BT: of `advantages.terminal_rewards`.
        logprobs_BT: of the policy that drew the reply.
        reference_BT: of the reference, at the same temperature.
    """
    penalty_BT = coefficient * k1(logprobs_BT, reference_BT)
    rewards_BT = as_scores(rewards_BT) - penalty_BT
    return jax.lax.stop_gradient(jnp.where(mask_BT, rewards_BT, 0.0))


def kl_in_score(scores_B, logprobs_BT, reference_BT, mask_BT, coefficient):
    """The same where a reply has one score: less coefficient x its sum of k1."""
    penalty_B = coefficient * kl_per_reply(logprobs_BT, reference_BT, mask_BT)
    return jax.lax.stop_gradient(as_scores(scores_B) - penalty_B)


def kl_loss(logprobs_BT, reference_BT, mask_BT):
    """k2 (B, T), the loss whose gradient is each token's KL, the prefix given.

    On the policy's own draws, and for each token alone: that a token leads to
    later ones where the policies differ does not count. With replies of one token
    the optimum is that of `kl_in_reward`; with longer ones it is another, and
    `reply_kl_loss` is the loss with the same.
    """
    return jnp.where(mask_BT, k2(logprobs_BT, reference_BT), 0.0)


def reply_kl_loss(logprobs_BT, reference_BT, mask_BT):
    """k2 of whole replies: summed over T, its gradient is that of KL(p(y), q(y)).

    With d the sum of k1 over the reply it is d^2 / 2, shared out over the tokens,
    and its gradient at each token is d times that of ln p.
    """
    per_token_BT = jnp.where(mask_BT, k1(logprobs_BT, reference_BT), 0.0)
    whole_B1 = jax.lax.stop_gradient(jnp.sum(per_token_BT, axis=-1, keepdims=True))
    still_BT = jax.lax.stop_gradient(per_token_BT)
    return whole_B1 * (per_token_BT - still_BT / 2)


def k3_loss(logprobs_BT, reference_BT, mask_BT):
    """GRPO's (Shao et al. 2024, eq. 4) k3 (B, T), to reproduce that paper.

    Its gradient is that of KL(q, p), the other direction: it keeps the policy on
    all that the reference does instead of off what it does not.
    """
    return jnp.where(mask_BT, k3(logprobs_BT, reference_BT), 0.0)


class AdaptiveKL(NamedTuple):
    """The coefficient that keeps the KL near a target (Ziegler et al. 2019, 2.2).

        error        = clip(KL / target - 1, -0.2, 0.2)
        coefficient *= 1 + error x min(replies / horizon, 1)

    coefficient: of the KL, now.
    target: nats a reply, the KL summed over its tokens; not used if fixed.
    horizon: replies in which a full error changes it by 20 %; 0: it is fixed.
    """

    coefficient: float
    target: float = 6.0
    horizon: float = 0.0

    def after(self, kl: float, replies: int) -> 'AdaptiveKL':
        """The next one.

        Args:
            kl: the mean over replies of the SUM over tokens, of `kl_per_reply`.
            replies: that it is the mean of.
        """
        if not self.horizon:
            return self
        error = min(max(float(kl) / self.target - 1.0, -0.2), 0.2)
        scale = 1.0 + error * min(replies / self.horizon, 1.0)
        return self._replace(coefficient=self.coefficient * scale)
