"""The stage `overoptimize`: proxy and gold reward over KL, as in Gao et al. 2022.

A reward model, the proxy, is optimised by best of n and by PPO. The gold reward, the
task's verifier or a reward model of other data (`best_of.judge`), measures both:

    RUN/select    preferences between the model's own replies
    RUN/proxy     the reward model
    RUN/ppo       PPO with the proxy as its reward, and all its checkpoints
    RUN/overoptimization.json, .html

The horizontal axis is the square root of the KL to the model that both start from. It
is known for best of n (`best_of.kl_of`); for a checkpoint of PPO it is the mean of
ln(p / q) over replies drawn from p. Where the proxy rises and gold falls, the proxy is
over-optimised.
"""

import contextlib
import math
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from gptjax.core import console, run_dir, storage
from gptjax.core.console import UserError
from gptjax.data import ratings
from gptjax.eval import best_of
from gptjax.eval.best_of import Experiment
from gptjax.eval.bootstrap import BootstrapSettings, compute_means
from gptjax.eval.report import overoptimization_page
from gptjax.eval.reward_evaluation import evaluate_reward
from gptjax.post import ppo, reward, select_replies
from gptjax.post.objectives.logprobs import token_logprobs
from gptjax.post.objectives.reply_tokens import reply_sums
from gptjax.post.problems.verifiable_tasks import make_task
from gptjax.post.reward_functions import find_reward_run
from gptjax.post.rollout import Rollout, Sampler, make_sampler
from gptjax.train import init_from
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.load_model import inference_mesh, load_model

RESULTS = 'overoptimization.json'
PAGE = 'overoptimization.html'
ROWS_AT_ONCE = 64  # replies whose log-probabilities are computed at once


def overoptimize(config: ConfigDict, workdir: Path) -> dict:
    """Trains the proxy and the policy if the config names none, then plots both.

    `config.parts` holds the configs of the stages `select`, `reward` and `ppo`.
    Returns what is written to RUN/overoptimization.json, or if a signal stopped a
    stage, the summary of that stage, with the reason 'interrupted'.
    """
    _check_judges(config)
    section = config.overoptimization
    proxy = _absolute(section.proxy) or workdir / 'proxy'
    policy = _absolute(section.policy) or workdir / 'ppo'
    if not section.proxy:
        summary = _train_proxy(config, workdir / 'select', proxy)
        if summary['reason'] == 'interrupted':
            return summary
    if not section.policy:
        summary = _train_policy(config, policy, proxy)
        if summary['reason'] == 'interrupted':
            return summary

    config = config.copy_and_resolve_references()
    config.task.rewards = _reward_section(proxy)
    experiment = best_of.make_experiment(config)
    sampler = make_sampler(experiment.trained, config.best_of, config.data.context)
    with contextlib.closing(sampler):
        results = best_of.measure_best_of(config, experiment, sampler)
        # PPO at step 0 is the model itself, as is best of n for n = 1.
        best_of_one = {
            name: results['points'][0][name]
            for name in ('kl', 'sqrt_kl', 'proxy', 'gold')
        }
        results['policy'] = [
            dict(step=0, kl_interval=[0.0, 0.0], **best_of_one),
            *_policy_points(config, experiment, sampler, policy),
        ]
    results.update(proxy=str(proxy), policy_run=str(policy))
    storage.write_json(workdir / RESULTS, results)
    page = overoptimization_page.build_page(workdir.name, results)
    storage.write_text(workdir / PAGE, page)
    return results


def _check_judges(config):
    """Refuses a judge before hours of training, not after them."""
    proxy, judge = _absolute(config.overoptimization.proxy), config.best_of.judge
    if proxy:
        find_reward_run(str(proxy), 'overoptimization.proxy')
    if judge and find_reward_run(judge, 'best_of.judge') == proxy:
        raise UserError(
            f'best_of.judge={judge} is the proxy itself: name another reward model'
        )
    if not judge:
        best_of.make_gold_reward(config.best_of, make_task(config.task, config.seed))


# ---- the proxy and the policy


def _train_proxy(config, selected, proxy):
    """Trains a reward model on pairs of the model's own replies."""
    select_config = _stage_config(config, 'select', selected)
    counts = select_replies.select(select_config, selected)
    print(select_replies.describe_selected(counts), flush=True)
    run_dir.write_config(select_config, selected)

    changes = {'reward.preferences': str(selected / 'selected' / 'pairs.jsonl')}
    reward_config = _stage_config(config, 'reward', proxy, changes)
    reward_config = reward.complete_config(reward_config, proxy)
    reward.check_config(reward_config)
    ratings.build_ratings(reward_config, proxy)
    run_dir.write_config(reward_config, proxy)
    summary = reward.train_reward(reward_config, proxy)
    if summary['reason'] != 'interrupted':
        evaluate_reward(reward_config, proxy)
    return summary


def _train_policy(config, policy, proxy):
    """Trains a policy by PPO with the proxy as its reward."""
    ppo_config = _stage_config(config, 'ppo', policy)
    ppo_config.task.rewards = _reward_section(proxy)
    run_dir.check_run(ppo_config, policy)
    ppo.check_config(ppo_config)
    run_dir.write_config(ppo_config, policy)
    return ppo.ppo(ppo_config, policy)


def _stage_config(config, name, workdir, changes=None):
    """The config of a stage, with the sections that all stages share."""
    stage_config = config.parts[name].copy_and_resolve_references()
    for shared in ('seed', 'start', 'mesh', 'task'):
        if shared in stage_config:
            stage_config[shared] = config[shared]
    stage_config.update_from_flattened_dict(changes or {})
    stage_config = init_from.inherit_config(stage_config, workdir)
    if name != 'ppo':  # its rewards are still to be set
        run_dir.check_run(stage_config, workdir)
    return stage_config


def _reward_section(proxy: Path) -> ConfigDict:
    """The section `task.rewards` with a reward model alone."""
    return ConfigDict(dict(proxy=dict(function='model', weight=1.0, run=str(proxy))))


def _absolute(given: str) -> Path | None:
    return Path(given).expanduser().absolute() if given else None


# ---- the points of the policy


def _policy_points(
    config, experiment: Experiment, sampler: Sampler, policy: Path
) -> list[dict]:
    """{step, kl, sqrt_kl, proxy, gold, …} of each checkpoint, in order."""
    policy_config = run_dir.read_config(policy)
    checkpoints = Checkpoints(policy / 'checkpoints', {}, read_only=True)
    steps = checkpoints.steps()
    checkpoints.close()
    mesh = inference_mesh(config)
    compute_log_ratios = _make_log_ratios(config, experiment, mesh)
    points = []
    fingerprint = experiment.trained.tokenizer.fingerprint
    num_replies = config.overoptimization.replies
    with console.progress_bar(
        'judging checkpoints', len(steps), 'checkpoints'
    ) as advance:
        for step in steps:
            trained = load_model(policy_config, policy, mesh, step)
            if trained.tokenizer.fingerprint != fingerprint:
                raise UserError(
                    f'overoptimization.policy={policy} has another tokenizer than '
                    f'start.run={config.start.run}: name a run that starts from it'
                )
            sampler.update_weights(trained.params, f'{policy} {step}')
            drawn = best_of.draw_held_out_replies(
                experiment, sampler, num_replies, config.seed, step
            )
            log_ratios_B = compute_log_ratios(trained.params, drawn)
            figures = _judge_replies(config, experiment, drawn, log_ratios_B)
            points.append(dict(step=step, **figures))
            advance(1)
    return points


def _judge_replies(
    config, experiment: Experiment, drawn: Rollout, log_ratios_B
) -> dict:
    """Means over replies, with bootstrap intervals over problems."""
    num_problems = len(experiment.problems)
    per_problem = lambda values_B: np.reshape(values_B, (num_problems, -1)).mean(axis=1)
    columns = dict(
        kl=per_problem(log_ratios_B),
        proxy=per_problem(experiment.proxy(drawn.problems, drawn.replies)),
        gold=per_problem(experiment.gold(drawn.problems, drawn.replies)),
    )
    figures = compute_means(columns, BootstrapSettings.of(config.eval))
    kl = figures['kl']['value']
    return dict(
        kl=kl,
        kl_interval=figures['kl']['interval'],
        sqrt_kl=math.sqrt(max(kl, 0.0)),  # an estimate, which can be negative
        proxy=figures['proxy'],
        gold=figures['gold'],
        truncation_rate=float(np.mean(drawn.truncated_B)),
    )


def _make_log_ratios(config, experiment: Experiment, mesh):
    """`compute(params, drawn) -> (B,)`: ln p - ln q of replies drawn from p."""
    settings, temperature = experiment.trained.settings, config.best_of.temperature
    base = jax.device_put(
        experiment.trained.params, NamedSharding(mesh, PartitionSpec())
    )

    @jax.jit
    def compute_batch(params, base, batch):
        policy_sums, base_sums = (
            reply_sums(
                token_logprobs(settings, weights, batch, temperature)[0],
                batch['weights'],
            )
            for weights in (params, base)
        )
        return policy_sums - base_sums

    def compute_log_ratios(params, drawn):
        B = len(drawn.lengths_B)
        log_ratios = []
        with jax.set_mesh(mesh):
            for first in range(0, B, ROWS_AT_ONCE):
                rows = np.arange(first, first + ROWS_AT_ONCE) % B  # a whole batch
                batch = {name: array[rows] for name, array in drawn.batch.items()}
                log_ratios.append(np.asarray(compute_batch(params, base, batch)))
        return np.concatenate(log_ratios)[:B]

    return compute_log_ratios
