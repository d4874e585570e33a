"""A rollout, judged and weighed: what the updates of PPO and GRPO read.

draw replies -> scores -> penalties and scale -> log-probabilities -> advantages
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
    """An algorithm, as the loop sees it; `params` are what is trained.

    score: `(params, reference, batch)` to (B, T) arrays: `old` and `reference`,
        log-probabilities, and what else `compute_advantages` reads.
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
    identity: what a checkpoint must have been made with, besides what all are.
    init_arguments: what else `PolicyModel.init` takes, read where a run is new.
    """

    score: Callable
    compute_advantages: Callable
    loss_fn: Callable
    token_metrics: tuple[str, ...]
    extra_arrays: Callable | None = None
    resampling: int = 0
    warm_up: int = 0
    identity: dict[str, str] = {}
    init_arguments: Callable[[], tuple] = tuple


class AdaptiveState(NamedTuple):
    """What rollouts leave behind for later ones, besides weights; kept in checkpoints.

    kl: the KL's coefficient.
    scores: of all replies so far, before they are scaled.
    """

    kl: AdaptiveKL
    scores: RunningMoments


class Environment(NamedTuple):
    """What a policy is trained in.

    prompt_format: of prompts and replies.
    task: gives the problems.
    reward: from (problems, replies) to scores (B,).
    """

    prompt_format: PromptFormat
    task: Task
    reward: Callable


class Experience(NamedTuple):
    """A rollout as arrays of the host, (B, T) and (B,).

    batch: what `loss_fn` reads.
    metrics: of the rollout.
    adaptive: for the next.
    empty: nothing can be learnt from it: every advantage is 0.
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


def collect(
    config: ConfigDict,
    environment: Environment,
    complete: Complete,
    score: Callable[[dict], dict],
    algorithm: Algorithm,
    adaptive: AdaptiveState,
    number: int,
) -> Experience:
    """The experience of rollout `number`, a function of it, the seed and the weights.

    Args:
        config: `seed` and `policy` are read.
        complete: draws.
        score: from a batch to the arrays of `algorithm.score`, on the host.
        adaptive: of the rollouts before.
        number: counts rollouts from 0.
    """
    began = time.perf_counter()
    rollout, raw_B, metrics = draw_groups(
        config, environment, complete, algorithm.resampling, number
    )
    drawn = time.perf_counter()

    policy = config.policy
    mask_BT = rollout.batch['weights']
    told_B = np.any(mask_BT, axis=1)  # not those that stand in for a group
    seen = adaptive.scores.after(raw_B[told_B])
    replies = int(np.sum(told_B))
    told_B = told_B if replies else ~told_B  # all of them stand in
    scores_B = shape_scores(policy, raw_B, rollout, seen)
    scored = score(rollout.batch)
    batch = {**rollout.batch, **scored}
    in_reward = adaptive.kl.coefficient if policy.kl_reward else 0.0
    batch, more = algorithm.compute_advantages(batch, scores_B, in_reward)

    kl_B = kl_per_reply(scored['old'], scored['reference'], mask_BT)
    kl = float(np.sum(kl_B)) / max(1, replies)
    metrics.update(
        score=float(np.mean(scores_B[told_B])),
        kl=kl,
        kl_coefficient=adaptive.kl.coefficient,
        response_length=float(np.mean(rollout.lengths_B[told_B])),
        truncation_rate=float(np.mean(rollout.truncated_B[told_B])),
        rollout_seconds=drawn - began,
        **more,
    )
    if policy.temperature == 1.0:  # the engine's log-probabilities are those at 1
        apart_BT = np.abs(rollout.sampled_BT - scored['old'])
        metrics['sampler_gap'] = float(np.max(np.where(mask_BT, apart_BT, 0)))
    steered = adaptive.kl
    if number >= algorithm.warm_up:  # before, the policy does not move
        steered = steered.after(kl, replies)
    adaptive = AdaptiveState(steered, seen)
    return Experience(batch, metrics, adaptive, not np.any(batch['advantages']))


def draw_groups(
    config: ConfigDict,
    environment: Environment,
    complete: Complete,
    resampling: int,
    number: int,
) -> tuple[Rollout, np.ndarray, dict]:
    """(rollout, its scores (B,), metrics); groups of equal scores drawn again.

    DAPO's dynamic sampling (Yu et al. 2025): prompts whose replies all score the same
    teach nothing, so further prompts are drawn, up to `resampling` times, until
    there are as many groups as a rollout has. Where there still are too few, the
    others stand in for them with weight 0.
    """
    policy, (prompt_format, task, reward) = config.policy, environment
    N, G = policy.prompts, policy.replies
    kept, spare, rewards, drawn_groups, mixed_groups = [], [], [], 0, 0
    for again in range(resampling + 1):
        first = (number * (resampling + 1) + again) * N
        problems = [task.train(first + place) for place in range(N)]
        words = f'{number}.{again}'
        rollout = draw_rollout(complete, prompt_format, problems, G, config.seed, words)
        scores_B = reward(rollout.problems, rollout.replies)
        rewards.append(float(np.mean(scores_B)))
        mixed_N = (
            np.asarray(informative(scores_B.reshape(N, G)))
            if G > 1
            else np.ones(N, bool)
        )
        drawn_groups, mixed_groups = drawn_groups + N, mixed_groups + int(mixed_N.sum())
        if not resampling:
            kept.append((rollout, scores_B))
            break
        for mixed, parts in ((True, kept), (False, spare)):
            rows = np.flatnonzero(np.repeat(mixed_N == mixed, G))
            parts.append((select_rows(rollout, rows), scores_B[rows]))
        if mixed_groups >= N:
            break

    useful = min(mixed_groups, N) * G if resampling else N * G
    parts = kept + spare
    rollout = select_rows(
        concatenate_rollouts([part for part, _ in parts]), range(N * G)
    )
    scores_B = np.concatenate([scores for _, scores in parts])[: N * G]
    rollout.batch['weights'][useful:] = 0
    metrics = dict(
        reward=float(np.mean(rewards)),  # of all that was drawn, to be comparable
        mixed_groups=mixed_groups / drawn_groups,
        groups_drawn=float(drawn_groups),
    )
    return rollout, scores_B, metrics


def shape_scores(
    policy: ConfigDict, raw_B, rollout: Rollout, seen: RunningMoments
) -> np.ndarray:
    """Scaled scores less the penalties for replies that are too long."""
    scale = policy.reward_scale * (seen.std if policy.reward_running_scale else 1.0)
    scores_B = scale_scores(raw_B, scale, clip=policy.reward_clip)
    if policy.overlong_buffer:
        scores_B = scores_B + overlong_penalty(
            rollout.batch['weights'], policy.max_tokens, policy.overlong_buffer
        )
    return np.asarray(
        missing_eos_penalty(scores_B, ~rollout.truncated_B, policy.missing_eos_penalty)
    )


def make_scorer(algorithm: Algorithm, mesh: Mesh, rows: int) -> Callable:
    """A function `(params, reference, batch)` to arrays of the host, `rows` at a time.

    Args:
        mesh: where it is computed.
        rows: divides the batch.
    """
    compiled = jax.jit(algorithm.score, out_shardings=replicated(mesh))

    def score(params, reference, batch):
        parts = []
        for first in range(0, len(batch['inputs']), rows):
            part = {name: array[first : first + rows] for name, array in batch.items()}
            parts.append(compiled(params, reference, put_on_mesh(part, mesh)))
        return {
            name: np.concatenate([np.asarray(part[name]) for part in parts])
            for name in parts[0]
        }

    return score
