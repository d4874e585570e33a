"""KL(policy, reference): estimators, reward penalties, losses and the controller.

With d = ln p - ln q of a token drawn from the policy p, where q is the reference
(Schulman 2020, Approximating KL divergence):

            formula         as an estimate     the gradient, on average
                                               in the reward            in the loss
    k1      d               unbiased           of KL(p, q)              0
    k2      d^2 / 2         biased             nearly 0 near q          of KL(p, q)
    k3      e^-d - 1 + d    unbiased, >= 0     of KL(p, q) - KL(q, p),  of KL(q, p)
                                               nearly 0 near q

In the reward, where the gradient is that of ln p times the estimator, k1 is right; in
the loss, which is differentiated, it is k2 (Tang and Munos 2025, arXiv 2506.09477; Liu
et al. 2025, arXiv 2510.01555). `policy.kl_estimator` chooses another one, and the run
prints what is wrong with it. Use one place: both together count the KL twice.

The papers: InstructGPT and Stiennon et al. 2020 have k1 in the reward, DeepSeekMath
(GRPO, eq. 4) has k3 in the loss, where KL(q, p) makes the policy cover what the
reference does, and KL(p, q) keeps it away from what the reference does not do.

All of this is for replies that p itself has drawn. In later updates on the same rollout
they come from an older policy. The loss has no ratios for this and is then biased; the
KL in the reward is part of the advantages, and the objective has the ratios.
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


ESTIMATORS = dict(k1=k1, k2=k2, k3=k3)
RIGHT = dict(kl_reward='k1', kl_loss='k2')  # the estimator that belongs in each place
PITFALLS = dict(
    kl_reward=dict(
        k2='it is biased, and its policy gradient nearly 0 near the reference',
        k3='its policy gradient is biased: that of KL(policy, reference) - '
        'KL(reference, policy), nearly 0 near the reference',
    ),
    kl_loss=dict(
        k1='its gradient is 0 on average: it is only noise',
        k3="its gradient is that of KL(reference, policy), as in GRPO's paper, not of "
        'KL(policy, reference)',
    ),
)


def kl_per_reply(logprobs_BT, reference_BT, mask_BT):
    """k1 summed over each reply, float32 (B,); the mean estimates the KL of replies.

    `AdaptiveKL` and plots of reward over the square root of KL use this KL.
    """
    return reply_sums(k1(logprobs_BT, reference_BT), mask_BT)


def kl_in_reward(
    rewards_BT, logprobs_BT, reference_BT, mask_BT, coefficient, estimator=k1
):
    """rewards - coefficient x KL of each token; no gradient flows.

    With k1 the expected sum is largest for p(y) ~ q(y) exp(r(y) / coefficient).

    Args:
        rewards_BT: from `advantages.terminal_rewards`.
        logprobs_BT, reference_BT: ln p of the policy that drew the replies, and ln q,
            at the same temperature.
        estimator: k1, k2 or k3.
    """
    penalty_BT = coefficient * estimator(logprobs_BT, reference_BT)
    rewards_BT = as_scores(rewards_BT) - penalty_BT
    return jax.lax.stop_gradient(jnp.where(mask_BT, rewards_BT, 0.0))


def kl_in_score(
    scores_B, logprobs_BT, reference_BT, mask_BT, coefficient, estimator=k1
):
    """scores - coefficient x the sum of the KL over each reply, (B,)."""
    kl_B = reply_sums(estimator(logprobs_BT, reference_BT), mask_BT)
    penalty_B = coefficient * kl_B
    return jax.lax.stop_gradient(as_scores(scores_B) - penalty_B)


def kl_loss(logprobs_BT, reference_BT, mask_BT, estimator=k2):
    """The KL of each token (B, T), a loss; the gradient of k2 is that of the exact KL.

    It ignores that a token leads to later tokens where the policies differ. So the
    optimum is that of `kl_in_reward` only for replies of one token; `reply_kl_loss`
    has this optimum for all replies.
    """
    return jnp.where(mask_BT, estimator(logprobs_BT, reference_BT), 0.0)


def reply_kl_loss(logprobs_BT, reference_BT, mask_BT):
    """k2 of whole replies (B, T): the sum over T has the gradient of KL(p(y), q(y)).

    With d the sum of k1 over the reply, the sum over T is d^2 / 2, and the gradient at
    each token is d times the gradient of ln p.
    """
    per_token_BT = jnp.where(mask_BT, k1(logprobs_BT, reference_BT), 0.0)
    whole_B1 = jax.lax.stop_gradient(jnp.sum(per_token_BT, axis=-1, keepdims=True))
    still_BT = jax.lax.stop_gradient(per_token_BT)
    return whole_B1 * (per_token_BT - still_BT / 2)


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
