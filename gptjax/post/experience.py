"""Experience: a rollout with scores, log-probabilities and advantages.

    rollout → rewards → scaling and penalties → log-probabilities → advantages

PPO and GRPO make their updates on it.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gptjax.parallel.sharding import put_on_mesh, replicated
from gptjax.post.objectives.advantages import informative
from gptjax.post.objectives.kl import (
    ESTIMATORS,
    PITFALLS,
    RIGHT,
    AdaptiveKL,
    kl_per_reply,
)
from gptjax.post.objectives.score_shaping import (
    RunningMoments,
    missing_eos_penalty,
    overlong_penalty,
    scale_scores,
)
from gptjax.post.problems.verifiable_tasks import Task
from gptjax.post.rollout import (
    Complete,
    PromptFormat,
    Rollout,
    concatenate_rollouts,
    draw_rollout,
    select_rows,
)


class Algorithm(NamedTuple):
    """A policy-gradient algorithm; `params` are the trained parameters.

    score_tokens: `(params, reference, batch)` → (B, T) arrays: the log-probabilities
        `old` and `reference`, and further ones for `compute_advantages`.
    compute_advantages: `(batch, scores_B, coefficient)` → (batch, metrics), for a whole
        rollout. It adds `advantages` to the batch, and further arrays for `loss_fn`.
    loss_fn: `(params, batch, key, control, reference=None)`, for `make_train_step`.
        `control` has two scalars: `coefficient` of the KL, and `policy`, which is 0
        while only a critic is trained. `reference` is passed under LoRA.
    token_metrics: names of the metrics that are means over the tokens of replies.
    extra_arrays: `(update number, batch of the update)` → further arrays for `loss_fn`.
    resampling: how often groups with equal scores are replaced by new ones.
    warm_up: the number of first rollouts that train only a critic.
    identity: added to the identity of checkpoints.
    init_arguments: returns further arguments of `PolicyModel.init`, for a new run.
    has_critic: whether the loss has a term for values, which learns from every reply.
    """

    score_tokens: Callable
    compute_advantages: Callable
    loss_fn: Callable
    token_metrics: tuple[str, ...]
    extra_arrays: Callable | None = None
    resampling: int = 0
    warm_up: int = 0
    identity: dict[str, str] = {}
    init_arguments: Callable[[], tuple] = tuple
    has_critic: bool = False


class AdaptiveState(NamedTuple):
    """Statistics that later rollouts depend on; checkpoints keep them as lists.

    kl: the controller of the KL coefficient.
    scores: moments of the scores of all replies so far, before scaling.
    """

    kl: AdaptiveKL
    scores: RunningMoments


class Environment(NamedTuple):
    """Prompts and rewards; `reward` maps (problems, replies) to scores (B,)."""

    prompt_format: PromptFormat
    task: Task
    reward: Callable


def new_adaptive_state(policy: ConfigDict) -> AdaptiveState:
    coefficient = policy.kl_reward or policy.kl_loss
    return AdaptiveState(
        AdaptiveKL(coefficient, policy.kl_target, policy.kl_horizon), RunningMoments()
    )


def kl_estimator(policy: ConfigDict, place: str) -> Callable:
    """The estimator of the KL in a place, 'kl_reward' or 'kl_loss'."""
    chosen = policy[place] and policy.kl_estimator
    return ESTIMATORS[chosen or RIGHT[place]]


def describe_kl_pitfall(policy: ConfigDict) -> str:
    """The warning that the estimator of the KL is not right where it is, or ''."""
    for place, pitfalls in PITFALLS.items():
        if policy[place] and policy.kl_estimator in pitfalls:
            return (
                f'warning: policy.kl_estimator={policy.kl_estimator} with '
                f'policy.{place}={policy[place]}: {pitfalls[policy.kl_estimator]}: use '
                f'policy.kl_estimator={RIGHT[place]}, unless you mean this'
            )
    return ''


def read_adaptive_state(values: list) -> AdaptiveState:
    """The state that a checkpoint keeps as lists."""
    kl, scores = values
    return AdaptiveState(AdaptiveKL(*kl), RunningMoments(*scores))


def collect_experience(
    config: ConfigDict,
    environment: Environment,
    complete: Complete,
    score_tokens: Callable[[dict], dict],
    algorithm: Algorithm,
    adaptive: AdaptiveState,
    rollout_number: int,
) -> tuple[dict[str, np.ndarray], dict[str, float], AdaptiveState]:
    """(batch for `loss_fn`, metrics, state for the next rollout), on the host.

    The result depends only on the rollout number, the seed, the weights and `adaptive`.

    Args:
        complete: generates replies.
        score_tokens: from a batch to the arrays of `algorithm.score_tokens`.
        rollout_number: counts from 0.
    """
    start = time.perf_counter()
    rollout, raw_B, metrics = draw_groups(
        config, environment, complete, algorithm.resampling, rollout_number
    )
    rollout_seconds = time.perf_counter() - start

    policy = config.policy
    mask_BT = rollout.batch['weights']
    # Groups that only fill the rollout have no weight: they do not count in means.
    counted_B = np.any(mask_BT, axis=1)
    moments = adaptive.scores.after(raw_B[counted_B])
    num_replies = int(np.sum(counted_B))
    counted_B = counted_B if num_replies else ~counted_B
    scores_B = shape_scores(policy, raw_B, rollout, moments)
    token_scores = score_tokens(rollout.batch)
    # The engine's log-probabilities have temperature 1, whatever that of the policy.
    at_one_BT = token_scores.pop('at_temperature_1', token_scores['old'])
    reward_coefficient = adaptive.kl.coefficient if policy.kl_reward else 0.0
    batch = {**rollout.batch, **token_scores}
    if policy.mask_truncated:  # they still count in the mean score of their group
        batch['weights'] = np.where(rollout.truncated_B[:, None], 0, mask_BT)
    batch, algorithm_metrics = algorithm.compute_advantages(
        batch, scores_B, reward_coefficient
    )
    # With several processes, arrays of jax.numpy are global and cannot be split again.
    batch = {name: np.asarray(array) for name, array in batch.items()}

    kl_B = kl_per_reply(token_scores['old'], token_scores['reference'], mask_BT)
    kl = float(np.sum(kl_B)) / max(1, num_replies)
    metrics.update(
        score=float(np.mean(scores_B[counted_B])),
        kl=kl,
        kl_coefficient=adaptive.kl.coefficient,
        response_length=float(np.mean(rollout.lengths_B[counted_B])),
        truncation_rate=float(np.mean(rollout.truncated_B[counted_B])),
        rollout_seconds=rollout_seconds,
        **algorithm_metrics,
    )
    gap_BT = np.abs(rollout.sampled_BT - at_one_BT)
    metrics['sampler_gap'] = float(np.max(np.where(mask_BT, gap_BT, 0)))
    controller = adaptive.kl
    if rollout_number >= algorithm.warm_up:  # the policy moves only after the warm-up
        controller = controller.after(kl, num_replies)
    return batch, metrics, AdaptiveState(controller, moments)


def draw_groups(
    config: ConfigDict,
    environment: Environment,
    complete: Complete,
    resampling: int,
    rollout_number: int,
) -> tuple[Rollout, np.ndarray, dict]:
    """(rollout, scores (B,), metrics); groups with equal scores are replaced.

    DAPO's dynamic sampling (Yu et al. 2025): a group whose replies all have the same
    score has no gradient. New prompts are drawn up to `resampling` times, until the
    rollout is full of mixed groups, those with different scores. If there are too few,
    groups with equal scores fill the rollout, with weight 0.
    """
    policy, (prompt_format, task, reward) = config.policy, environment
    N, G = policy.prompts, policy.replies
    rollouts, scores, mixed = [], [], []
    for draw in range(resampling + 1):
        first = (rollout_number * (resampling + 1) + draw) * N
        problems = [task.train(first + place) for place in range(N)]
        name = f'{rollout_number}.{draw}'
        rollout = draw_rollout(complete, prompt_format, problems, G, config.seed, name)
        scores_B = reward(rollout.problems, rollout.replies)
        rollouts.append(rollout)
        scores.append(scores_B)
        mixed += informative(scores_B.reshape(N, G)).tolist() if G > 1 else [True] * N
        if sum(mixed) >= N:
            break

    order = np.arange(N)
    if resampling:  # mixed groups first
        order = np.argsort(np.logical_not(mixed), kind='stable')[:N]
    rows = (order[:, None] * G + np.arange(G)).ravel()
    rollout = select_rows(concatenate_rollouts(rollouts), rows)
    scores_B = np.concatenate(scores)[rows]
    if resampling:
        rollout.batch['weights'][sum(mixed) * G :] = 0
    metrics = dict(
        # Over all replies that were drawn: comparable between runs.
        reward=float(np.mean([float(np.mean(drawn_B)) for drawn_B in scores])),
        mixed_groups=sum(mixed) / len(mixed),
        groups_drawn=float(len(mixed)),
    )
    return rollout, scores_B, metrics


def shape_scores(
    policy: ConfigDict, raw_B, rollout: Rollout, moments: RunningMoments
) -> np.ndarray:
    """Scaled scores, minus the penalties for replies that are too long."""
    scale = policy.reward_scale * (moments.std if policy.reward_running_scale else 1.0)
    scores_B = scale_scores(raw_B, scale, clip=policy.reward_clip)
    if policy.overlong_buffer:
        scores_B = scores_B + overlong_penalty(
            rollout.batch['weights'], policy.max_tokens, policy.overlong_buffer
        )
    return np.asarray(
        missing_eos_penalty(scores_B, ~rollout.truncated_B, policy.missing_eos_penalty)
    )


def make_token_scorer(algorithm: Algorithm, mesh: Mesh, rows: int) -> Callable:
    """`algorithm.score_tokens` with arrays on the host, `rows` rows at a time.

    `rows` must divide the rows of a batch.
    """
    compiled = jax.jit(algorithm.score_tokens, out_shardings=replicated(mesh))

    def score_tokens(params, reference, batch):
        parts = []
        for first in range(0, len(batch['inputs']), rows):
            part = {name: array[first : first + rows] for name, array in batch.items()}
            parts.append(compiled(params, reference, put_on_mesh(part, mesh)))
        return {
            name: np.concatenate([np.asarray(part[name]) for part in parts])
            for name in parts[0]
        }

    return score_tokens
