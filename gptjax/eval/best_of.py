"""The stage `best_of`: of n replies, take the one with the highest reward.

The weights do not change, but the distribution of replies does. Its KL to the model is
at most

    KL = ln n - (n - 1) / n       (Stiennon et al. 2020, appendix G.3)

with equality if no two replies have the same reward. The proxy (`task.rewards`, for
example a reward model) chooses the reply. The gold reward, the verifier or another
reward model (`best_of.judge`), says how good the choice is. If the proxy has errors, a
larger n raises the proxy and, from some n on, lowers gold.
"""

import contextlib
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from gptjax.core import console, storage
from gptjax.core.console import UserError
from gptjax.eval.bootstrap import BootstrapSettings, compute_means
from gptjax.eval.report.tables import print_table
from gptjax.parallel.mesh import make_mesh
from gptjax.post import reward_functions, rollout
from gptjax.post.policy_model import apply_compute_settings
from gptjax.post.problems.problem_sources import Problem
from gptjax.post.problems.verifiable_tasks import Task, make_task
from gptjax.post.reward_functions import Reward, make_reward
from gptjax.post.rollout import (
    PromptFormat,
    Rollout,
    Sampler,
    make_prompt_format,
    make_sampler,
)
from gptjax.train import config_checks
from gptjax.train.init_from import load_start
from gptjax.train.load_model import Trained, model_fingerprint

RESULTS = 'best_of.json'
PROBLEMS_AT_ONCE = 16


class Experiment(NamedTuple):
    """A model, held-out problems, and the two rewards of replies to them."""

    trained: Trained
    prompt_format: PromptFormat
    problems: list[Problem]
    proxy: Reward
    gold: Reward


def best_of(config: ConfigDict, workdir: Path) -> dict:
    """Draws N replies to each held-out problem; writes and returns RUN/best_of.json."""
    experiment = make_experiment(config)
    sampler = make_sampler(experiment.trained, config.best_of, config.data.context)
    with contextlib.closing(sampler):
        results = measure_best_of(config, experiment, sampler)
    storage.write_json(workdir / RESULTS, results)
    return results


def make_experiment(config: ConfigDict) -> Experiment:
    """The model of `start.run`, held-out problems, and both rewards."""
    mesh = make_mesh(config.mesh)
    config_checks.check_context(config, mesh)
    with jax.set_mesh(mesh):
        trained = apply_compute_settings(config, load_start(config, mesh))
    prompt_format = make_prompt_format(config, 'best_of', trained.tokenizer)
    task = make_task(
        config.task, config.seed, prompt_format.fits, prompt_format.room_advice
    )
    return Experiment(
        trained,
        prompt_format,
        task.held_out(config.best_of.problems),
        make_reward(config.task, task),
        make_gold_reward(config.best_of, task),
    )


def make_gold_reward(section: ConfigDict, task: Task) -> Reward:
    """The reward model `best_of.judge`; if it is empty, the verifier."""
    if section.judge:
        name = 'best_of.judge'
        reward = reward_functions.model_reward(section.judge, name)
    elif task.score is not None:
        name, reward = 'correct', reward_functions.correct(task)
    else:
        raise UserError(
            'task.path has problems without answers, so that the verifier cannot judge '
            'the chosen replies: add "answer" to each, or name a reward model in '
            'best_of.judge'
        )
    return partial(reward_functions.compute_rewards, name, reward)


def measure_best_of(
    config: ConfigDict, experiment: Experiment, sampler: Sampler
) -> dict:
    """Draws and scores the replies; the curve of best of n is `points`."""
    section, N = config.best_of, config.best_of.samples
    drawn = draw_held_out_replies(experiment, sampler, N, config.seed, 'best_of')
    proxy_PN = experiment.proxy(drawn.problems, drawn.replies).reshape(-1, N)
    gold_PN = experiment.gold(drawn.problems, drawn.replies).reshape(-1, N)
    bootstrap_settings = BootstrapSettings.of(config.eval)
    return dict(
        model=model_fingerprint(experiment.trained),
        step=experiment.trained.step,
        problems=len(experiment.problems),
        samples=N,
        judge=section.judge,
        temperature=section.temperature,
        truncation_rate=float(np.mean(drawn.truncated_B)),
        bootstrap=bootstrap_settings._asdict(),
        points=compute_curve(proxy_PN, gold_PN, bootstrap_settings),
    )


def draw_held_out_replies(
    experiment: Experiment, sampler: Sampler, replies: int, seed: int, name: str
) -> Rollout:
    """Draws replies to each held-out problem; `seed` and `name` decide the keys."""
    problems, rollouts = experiment.problems, []
    draw = partial(rollout.draw_rollout, sampler.complete, experiment.prompt_format)
    with console.progress_bar('drawing replies', len(problems), 'problems') as advance:
        for first in range(0, len(problems), PROBLEMS_AT_ONCE):
            chunk = problems[first : first + PROBLEMS_AT_ONCE]
            rollouts.append(draw(chunk, replies, seed, f'{name} {first}'))
            advance(len(chunk))
    return rollout.concatenate_rollouts(rollouts)


def compute_curve(
    proxy_PN: np.ndarray, gold_PN: np.ndarray, bootstrap_settings: BootstrapSettings
) -> list[dict]:
    """The points of n = 1, 2, 4, … N, with bootstrap intervals over P problems.

    Each has `n`, `kl`, `sqrt_kl`, and means over problems of `proxy` and `gold`.
    """
    N = np.shape(proxy_PN)[1]
    sizes = [2**power for power in range(N.bit_length()) if 2**power <= N]
    columns = {}
    for n in sizes:
        best_P2 = [
            best_of_n(*scores, n) for scores in zip(proxy_PN, gold_PN, strict=True)
        ]
        columns[f'proxy {n}'], columns[f'gold {n}'] = np.transpose(best_P2)
    figures = compute_means(columns, bootstrap_settings)
    return [
        dict(
            n=n,
            kl=kl_of(n),
            sqrt_kl=math.sqrt(kl_of(n)),
            proxy=figures[f'proxy {n}'],
            gold=figures[f'gold {n}'],
        )
        for n in sizes
    ]


def best_of_n(proxy_N, gold_N, n: int) -> tuple[float, float]:
    """The expected (proxy, gold) of the reply with the highest proxy of n draws.

    The mean over all subsets of n of the N samples (Nakano et al. 2021, appendix I),
    which has no bias and less variance than one subset:

        P(the best is at most v) = C(samples at most v, n) / C(N, n)

    Each sample of equal proxy is equally likely to be taken: their gold is averaged.
    """
    values_K, kind_N, counts_K = np.unique(
        proxy_N, return_inverse=True, return_counts=True
    )
    gold_K = np.bincount(kind_N, np.asarray(gold_N, np.float64)) / counts_K
    subsets = math.comb(len(proxy_N), n)
    below_K = np.array(
        [math.comb(int(count), n) / subsets for count in np.cumsum(counts_K)]
    )
    chance_K = np.diff(below_K, prepend=0.0)
    return float(chance_K @ values_K), float(chance_K @ gold_K)


def kl_of(n: int) -> float:
    """ln n - (n - 1) / n, nats."""
    return math.log(n) - (n - 1) / n


def print_best_of(results: Mapping) -> None:
    """Prints the curve as a table."""
    rows = [('n', 'KL, nats', 'proxy', 'gold')]
    for point in results['points']:
        rewards = [format_reward(point[name]) for name in ('proxy', 'gold')]
        rows.append((str(point['n']), f'{point["kl"]:.2f}', *rewards))
    print(
        f'Best of n by the proxy, {results["samples"]} replies to each of '
        f'{results["problems"]:,} held-out problems, '
        f'{results["bootstrap"]["level"]:.0%} intervals over problems'
    )
    print_table(rows)


def format_reward(figure: Mapping) -> str:
    """'0.500 (0.400 to 0.600)' of {value, interval}."""
    low, high = figure['interval']
    return f'{figure["value"]:.3f} ({low:.3f} to {high:.3f})'
