"""Losses of preferences, pair by pair, to be minimised.

They take log-probabilities of whole replies, (N,) float32: sums over the reply's
tokens (`reply_tokens.reply_sums`), or means (`reply_tokens.reply_means`) where the name
says so. Each returns (loss (N,), metrics), the metrics (N,) as well:

    chosen_reward    beta x ln(policy / reference) of the chosen reply (of SimPO and
    rejected_reward  ORPO, which know no reference, the mean ln p), and of the rejected
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

    With s = 0 its optimum under Bradley-Terry preferences of a reward r is
    p(y) ~ q(y) exp(r(y) / beta). Where a preference is certain h grows without end;
    with s > 0 (cDPO, Mitchell 2023: labels that are wrong with probability s) it
    stops at beta h = ln((1 - s) / s).

    Args:
        chosen_N, rejected_N: ln p of the replies, summed over tokens, with gradient.
        reference_chosen_N, reference_rejected_N: ln q of the same.
        beta: positive; of the KL that DPO stands for.
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
    """Identity preference optimisation (Azar et al. 2024, eq. 17): (h - 1/(2 beta))^2.

    h is that of `dpo`, of sums over tokens; it is drawn to 1 / (2 beta), even where
    a preference is certain.
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
        loss = w (1 - sigmoid(+-beta (r - baseline))),  + where desirable

    Pairs are taken apart: the chosen are desirable, the rejected are not.

    Args:
        logprobs_N: ln p, summed over tokens, with gradient.
        reference_N: ln q of the same.
        desirable_N: bool.
        baseline: of `kto_baseline`, of the whole batch: not of a micro-batch.
        beta: positive.
        desirable_weight, undesirable_weight: w of either; the paper keeps
            desirable_weight x desirable / (undesirable_weight x undesirable) between
            1 and 4/3 (eq. 9).

    Returns:
        (loss (N,), dict(desirable_reward, undesirable_reward)): the rewards beta r
        where the reply is of that kind, and 0 elsewhere.
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
    """KTO's reference point: max(0, mean ln(p / q)), a float32 scalar.

    Args:
        mismatched_N: ln p of replies after prompts of other rows, summed over
            tokens; no gradient flows.
        reference_mismatched_N: ln q of the same.
    """
    mean = jnp.mean(mismatched_N - reference_mismatched_N)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


def orpo(chosen_mean_N, rejected_mean_N, weight):
    """Odds-ratio preference optimisation (Hong et al. 2024, eq. 6): no reference.

        loss = -ln P(chosen) - weight ln sigmoid(ln odds(chosen) - ln odds(rejected))

    with odds = P / (1 - P).

    Args:
        chosen_mean_N, rejected_mean_N: ln P, the mean of ln p over the tokens.
        weight: lambda, as 0.1.
    """
    log_odds_N = _log_odds(chosen_mean_N) - _log_odds(rejected_mean_N)
    loss_N = -chosen_mean_N - weight * jax.nn.log_sigmoid(log_odds_N)
    return loss_N, _metrics(chosen_mean_N, rejected_mean_N)


def simpo(chosen_mean_N, rejected_mean_N, beta, margin):
    """Simple preference optimisation (Meng et al. 2024, eq. 6): no reference.

        loss = -ln sigmoid(beta (mean ln p(chosen) - mean ln p(rejected)) - margin)

    Args:
        chosen_mean_N, rejected_mean_N: the mean of ln p over the tokens.
        beta: as 2.
        margin: gamma, that the chosen is to be ahead by, as 1.
    """
    rewards = (beta * chosen_mean_N, beta * rejected_mean_N)
    loss_N = -jax.nn.log_sigmoid(rewards[0] - rewards[1] - margin)
    return loss_N, _metrics(*rewards)


def nll(chosen_mean_N):
    """-mean ln p of the chosen reply (N,), a term to add (Pang et al. 2024, eq. 1).

    It keeps the chosen reply's own probability up, of which DPO says nothing.
    """
    return -chosen_mean_N


def _log_odds(logprob_N):
    """ln P / (1 - P), finite where P rounds to 1."""
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
