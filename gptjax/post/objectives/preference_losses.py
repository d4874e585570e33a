"""Losses of N preference pairs, to be minimised; p is the policy, q the reference.

Arguments are log-probabilities of whole replies, float32 (N,): sums over the tokens of
a reply (`reply_tokens.reply_sums`), or means (`reply_tokens.reply_means`) if `mean` is
in the name. Each loss returns (loss (N,), metrics), and the metrics are (N,) too:

    chosen_reward    beta ln(p / q) of the chosen reply; ORPO and SimPO have no
                     reference and report the mean ln p instead
    rejected_reward  the same of the rejected reply
    margin           chosen_reward - rejected_reward
    accuracy         1 where the margin is positive
"""

import jax
import jax.numpy as jnp


def dpo(
    chosen_N,
    rejected_N,
    reference_chosen_N,
    reference_rejected_N,
    beta,
    label_smoothing=0.0,
):
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7).

        h = ln(p / q)(chosen) - ln(p / q)(rejected)
        loss = -(1 - s) ln sigmoid(beta h) - s ln sigmoid(-beta h)

    With s = 0 and Bradley-Terry preferences of a reward r the optimum is
    p(y) ~ q(y) exp(r(y) / beta). If a preference is certain, h grows without bound.
    With s > 0 (cDPO, Mitchell 2023: a label is wrong with probability s) it stops at
    beta h = ln((1 - s) / s).

    Args:
        chosen_N, rejected_N: ln p, with gradient.
        reference_chosen_N, reference_rejected_N: ln q.
        beta: positive, the coefficient of the KL in the equivalent RL objective.
        label_smoothing: s, below 0.5.
    """
    rewards = (
        beta * (chosen_N - reference_chosen_N),
        beta * (rejected_N - reference_rejected_N),
    )
    margin_N = rewards[0] - rewards[1]
    loss_N = -(1.0 - label_smoothing) * jax.nn.log_sigmoid(margin_N)
    loss_N -= label_smoothing * jax.nn.log_sigmoid(-margin_N)
    return loss_N, _metrics(*rewards)


def ipo(chosen_N, rejected_N, reference_chosen_N, reference_rejected_N, beta):
    """Identity preference optimisation (Azar et al. 2024, eq. 17).

        loss = (h - 1 / (2 beta))^2, with the h of `dpo`

    h stays finite even if a preference is certain.
    """
    log_ratios = (chosen_N - reference_chosen_N, rejected_N - reference_rejected_N)
    h_N = log_ratios[0] - log_ratios[1]
    rewards = (beta * log_ratio_N for log_ratio_N in log_ratios)
    return jnp.square(h_N - 1.0 / (2.0 * beta)), _metrics(*rewards)


def kto(
    logprobs_N,
    reference_N,
    desirable_N,
    baseline,
    beta,
    desirable_weight=1.0,
    undesirable_weight=1.0,
):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, eq. 8) of single replies.

        r = ln(p / q)
        loss = w (1 - sigmoid(beta (r - baseline)))     of a desirable reply
        loss = w (1 - sigmoid(-beta (r - baseline)))    of an undesirable reply

    Chosen replies of pairs are desirable, rejected replies are undesirable.

    Args:
        logprobs_N, reference_N: ln p with gradient, and ln q.
        desirable_N: bool.
        baseline: from `kto_baseline` of the whole batch, not of a micro-batch.
        desirable_weight, undesirable_weight: w. The paper keeps desirable_weight x
            (number of desirable replies) / (undesirable_weight x (number of undesirable
            replies)) between 1 and 4/3 (eq. 9).

    Returns:
        (loss (N,), dict(desirable_reward, undesirable_reward)): beta r where the reply
        is of that kind, else 0.
    """
    desirable_N = jnp.asarray(desirable_N) != 0
    reward_N = beta * (logprobs_N - reference_N)
    above_N = reward_N - beta * jax.lax.stop_gradient(baseline)
    sign_N = jnp.where(desirable_N, 1.0, -1.0)
    weight_N = jnp.where(desirable_N, desirable_weight, undesirable_weight)
    loss_N = weight_N * jax.nn.sigmoid(-sign_N * above_N)
    reward_N = jax.lax.stop_gradient(reward_N)
    return loss_N, dict(
        desirable_reward=jnp.where(desirable_N, reward_N, 0.0),
        undesirable_reward=jnp.where(desirable_N, 0.0, reward_N),
    )


def kto_baseline(mismatched_N, reference_mismatched_N):
    """KTO's reference point: max(0, mean ln(p / q)), a scalar without gradient.

    Args:
        mismatched_N, reference_mismatched_N: ln p and ln q of replies after the prompts
            of other replies.
    """
    mean = jnp.mean(mismatched_N - reference_mismatched_N)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


def orpo(chosen_mean_N, rejected_mean_N, weight):
    """Odds-ratio preference optimisation (Hong et al. 2024, eq. 6), without reference.

        loss = -ln P(chosen) - weight ln sigmoid(ln odds(chosen) - ln odds(rejected))
        odds = P / (1 - P), where ln P is the mean ln p over tokens

    `weight` is the paper's lambda, for example 0.1.
    """
    log_odds_N = _log_odds(chosen_mean_N) - _log_odds(rejected_mean_N)
    loss_N = -chosen_mean_N - weight * jax.nn.log_sigmoid(log_odds_N)
    return loss_N, _metrics(chosen_mean_N, rejected_mean_N)


def simpo(chosen_mean_N, rejected_mean_N, beta, margin):
    """Simple preference optimisation (Meng et al. 2024, eq. 6), without reference.

        loss = -ln sigmoid(beta (mean ln p(chosen) - mean ln p(rejected)) - margin)

    `margin` is the paper's gamma. Typical values are beta 2 and margin 1.
    """
    rewards = (beta * chosen_mean_N, beta * rejected_mean_N)
    loss_N = -jax.nn.log_sigmoid(rewards[0] - rewards[1] - margin)
    return loss_N, _metrics(*rewards)


def nll(chosen_mean_N):
    """-mean ln p of the chosen reply (N,), a term to add (Pang et al. 2024, eq. 1).

    DPO alone does not stop the probability of the chosen reply from falling.
    """
    return -chosen_mean_N


def _log_odds(logprob_N):
    """ln(P / (1 - P)), finite where P rounds to 1."""
    logprob_N = jnp.minimum(logprob_N, -1e-6)
    return logprob_N - jnp.log(-jnp.expm1(logprob_N))


def _metrics(chosen_reward_N, rejected_reward_N):
    margin_N = chosen_reward_N - rejected_reward_N
    metrics = dict(
        chosen_reward=chosen_reward_N,
        rejected_reward=rejected_reward_N,
        margin=margin_N,
        accuracy=(margin_N > 0).astype(jnp.float32),
    )
    return jax.lax.stop_gradient(metrics)
