"""Experience: a rollout with its scores, log-probabilities and advantages.

    draw replies -> rewards -> scale and penalties -> log-probabilities -> advantages

The updates of PPO and GRPO read it.
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
from gptjax.post.objectives.kl import AdaptiveKL, kl_per_reply
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
    """An algorithm; `params` are what is trained.

    score_tokens: `(params, reference, batch)` to (B, T) arrays: `old` and
        `reference`, log-probabilities, and what else `compute_advantages` reads.
    compute_advantages: `(batch, scores_B, coefficient)` to (the batch with `advantages`
        and what else `loss_fn` reads, metrics); on the host, of a whole rollout.
    loss_fn: `(params, batch, key, control, reference=None)`, for `make_train_step`.
        `control` has the scalars `coefficient`, of the KL, and `policy`, 0 while
        only a critic trains; the reference is given under LoRA.
    token_metrics: those of `loss_fn` that are means over the replies' tokens.
    extra_arrays: from an update's number and its rows of the batch to further arrays
        that `loss_fn` reads; None: there are none.
    resampling: further draws for groups whose scores are all equal.
    warm_up: rollouts that train only a critic.
    identity: of its checkpoints, besides what every stage's has.
    init_arguments: further arguments of `PolicyModel.init`, read where a run is new.
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


class AdaptiveState(NamedTuple):
    """What later rollouts depend on besides weights; kept in checkpoints.

    kl: the controller of the KL's coefficient.
    scores: moments of the scores of all replies so far, before they are scaled.
    """

    kl: AdaptiveKL
    scores: RunningMoments


class Environment(NamedTuple):
    """What a policy is trained in: problems, how prompts are written, and rewards.

    reward: from (problems, replies) to scores (B,).
    """

    prompt_format: PromptFormat
    task: Task
    reward: Callable


class Experience(NamedTuple):
    """A rollout as arrays of the host, (B, T) and (B,).

    batch: what `loss_fn` reads.
    metrics: of the rollout.
    adaptive: for the next rollout.
    empty: every advantage is 0, so nothing can be learnt from it.
    """

    batch: dict[str, np.ndarray]
    metrics: dict[str, float]
    adaptive: AdaptiveState
    empty: bool


def adaptive_state(values: list) -> AdaptiveState:
    """The state that a checkpoint's record holds as lists."""
    kl, scores = values
    return AdaptiveState(AdaptiveKL(*kl), RunningMoments(*scores))


def new_adaptive_state(policy: ConfigDict) -> AdaptiveState:
    coefficient = policy.kl_reward or policy.kl_loss
    return AdaptiveState(
        AdaptiveKL(coefficient, policy.kl_target, policy.kl_horizon), RunningMoments()
    )


def collect_experience(
    config: ConfigDict,
    environment: Environment,
    complete: Complete,
    score_tokens: Callable[[dict], dict],
    algorithm: Algorithm,
    adaptive: AdaptiveState,
    rollout_number: int,
) -> Experience:
    """The experience of a rollout, a function of its number, the seed and the weights.

    Args:
        config: `seed` and `policy` are read.
        complete: generates replies.
        score_tokens: from a batch to the arrays of `algorithm.score_tokens`, on the
            host.
        adaptive: of the rollouts before.
        rollout_number: counts rollouts from 0.
    """
    start = time.perf_counter()
    rollout, raw_B, metrics = draw_groups(
        config, environment, complete, algorithm.resampling, rollout_number
    )
    rollout_seconds = time.perf_counter() - start

    policy = config.policy
    mask_BT = rollout.batch['weights']
    counted_B = np.any(mask_BT, axis=1)  # not the groups that only fill the rollout
    moments = adaptive.scores.after(raw_B[counted_B])
    num_replies = int(np.sum(counted_B))
    counted_B = counted_B if num_replies else ~counted_B  # all groups are fillers
    scores_B = shape_scores(policy, raw_B, rollout, moments)
    token_scores = score_tokens(rollout.batch)
    batch = {**rollout.batch, **token_scores}
    reward_coefficient = adaptive.kl.coefficient if policy.kl_reward else 0.0
    batch, algorithm_metrics = algorithm.compute_advantages(
        batch, scores_B, reward_coefficient
    )

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
    if policy.temperature == 1.0:  # the engine's log-probabilities are those at 1
        gap_BT = np.abs(rollout.sampled_BT - token_scores['old'])
        metrics['sampler_gap'] = float(np.max(np.where(mask_BT, gap_BT, 0)))
    controller = adaptive.kl
    if rollout_number >= algorithm.warm_up:  # before, the policy does not move
        controller = controller.after(kl, num_replies)
    adaptive = AdaptiveState(controller, moments)
    return Experience(batch, metrics, adaptive, not np.any(batch['advantages']))


def draw_groups(
    config: ConfigDict,
    environment: Environment,
    complete: Complete,
    resampling: int,
    rollout_number: int,
) -> tuple[Rollout, np.ndarray, dict]:
    """(rollout, its scores (B,), metrics); groups of equal scores are replaced.

    DAPO's dynamic sampling (Yu et al. 2025): prompts whose replies all score the same
    teach nothing, so further prompts are drawn, up to `resampling` times, until
    there are as many mixed groups as a rollout has. If there still are too few, groups
    of equal scores fill the rollout, with weight 0.
    """
    policy, (prompt_format, task, reward) = config.policy, environment
    N, G = policy.prompts, policy.replies
    mixed, equal, rewards, num_drawn, num_mixed = [], [], [], 0, 0
    for draw in range(resampling + 1):
        first = (rollout_number * (resampling + 1) + draw) * N
        problems = [task.train(first + place) for place in range(N)]
        name = f'{rollout_number}.{draw}'
        rollout = draw_rollout(complete, prompt_format, problems, G, config.seed, name)
        scores_B = reward(rollout.problems, rollout.replies)
        rewards.append(float(np.mean(scores_B)))
        mixed_N = np.ones(N, bool)
        if G > 1:
            mixed_N = np.asarray(informative(scores_B.reshape(N, G)))
        num_drawn, num_mixed = num_drawn + N, num_mixed + int(mixed_N.sum())
        if not resampling:
            mixed.append((rollout, scores_B))
            break
        for is_mixed, groups in ((True, mixed), (False, equal)):
            rows = np.flatnonzero(np.repeat(mixed_N == is_mixed, G))
            groups.append((select_rows(rollout, rows), scores_B[rows]))
        if num_mixed >= N:
            break

    groups = mixed + equal
    rollout = concatenate_rollouts([rollout for rollout, _ in groups])
    rollout = select_rows(rollout, range(N * G))
    scores_B = np.concatenate([scores_B for _, scores_B in groups])[: N * G]
    if resampling:
        rollout.batch['weights'][min(num_mixed, N) * G :] = 0
    metrics = dict(
        reward=float(np.mean(rewards)),  # of all that was drawn, to be comparable
        mixed_groups=num_mixed / num_drawn,
        groups_drawn=float(num_drawn),
    )
    return rollout, scores_B, metrics


def shape_scores(
    policy: ConfigDict, raw_B, rollout: Rollout, moments: RunningMoments
) -> np.ndarray:
    """Scaled scores less the penalties for replies that are too long."""
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
    """`(params, reference, batch)` to the arrays of `algorithm.score_tokens`.

    The arrays are on the host; `rows` are computed at a time, which divides the batch.
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
