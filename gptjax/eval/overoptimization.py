"""How far can a proxy reward be trusted? The plot of Gao et al. 2022, by one command.

A proxy, a reward model trained on so many preferences, is optimised in two ways, and
the gold reward, the task's verifier or a reward model of other data
(`best_of.judge`), says what comes of it:

    RUN/select    preferences out of the model's own replies
    RUN/proxy     the reward model
    RUN/ppo       PPO against it, with all its checkpoints
    RUN/overoptimization.json, .html

Both ways are drawn over the square root of their KL to the model that they start from:
of best-of-n it is known (`best_of.kl_of`), of PPO's checkpoints it is the mean of
ln(p / q) over replies drawn from p. Where the proxy rises and gold falls, the proxy
is over-optimised.
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
from gptjax.eval import best_of, bootstrap, results
from gptjax.eval.best_of import Bench
from gptjax.eval.report import overoptimization_page
from gptjax.eval.reward_evaluation import evaluate_reward
from gptjax.post import ppo, reward, select_replies
from gptjax.post.objectives.logprobs import token_logprobs
from gptjax.post.objectives.reply_sums import reply_sums
from gptjax.post.problems.verifiable_tasks import make_task
from gptjax.post.reward_functions import find_reward_run
from gptjax.post.rollout import Rollout, Sampler
from gptjax.train import init_from
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.load_model import inference_mesh, load

RESULTS = 'overoptimization.json'
PAGE = 'overoptimization.html'
ROWS_AT_ONCE = 64  # replies whose log-probabilities are computed at once


def overoptimize(config: ConfigDict, workdir: Path) -> dict:
    """Makes what is missing of a proxy and a policy, then the plot.

    Args:
        config: of `init_from.inherit_config`, from the start of all. `parts`
            holds the configs of the stages `select`, `reward` and `ppo`.
        workdir: RUN.

    Returns:
        What is written to RUN/overoptimization.json; or where a signal stopped a
        stage, its summary, with the reason 'interrupted'.

    Raises:
        UserError: a stage refuses, or there is nothing that judges.
    """
    check_config(config)
    _check_judges(config)
    section = config.overoptimization
    proxy = _path(section.proxy) or workdir / 'proxy'
    policy = _path(section.policy) or workdir / 'ppo'
    if not section.proxy:
        summary = _train_proxy(config, workdir / 'select', proxy)
        if summary['reason'] == 'interrupted':
            return summary
    if not section.policy:
        summary = _train_policy(config, policy, proxy)
        if summary['reason'] == 'interrupted':
            return summary

    config = config.copy_and_resolve_references()
    config.task.rewards = _rewarded_by(proxy)
    bench = best_of.make_bench(config)
    with contextlib.closing(best_of.make_sampler(bench.trained, config.best_of)) as s:
        found = best_of.measure(config, bench, s)
        found['policy'] = [
            _starting_point(found['points'][0]),
            *_policy_points(config, bench, s, policy),
        ]
    found.update(proxy=str(proxy), policy_run=str(policy))
    storage.write_json(workdir / RESULTS, found)
    storage.write_text(workdir / PAGE, overoptimization_page.page(workdir.name, found))
    return found


def check_config(config: ConfigDict) -> None:
    """Refuses what makes no plot.

    Raises:
        UserError: it names the field and the fix.
    """
    best_of.check_config(config)
    replies = config.overoptimization.replies
    if not replies >= 1:
        raise UserError(f'overoptimization.replies={replies}: use at least 1')


def _check_judges(config):
    """Refuses now what would be noticed after hours."""
    proxy, judge = _path(config.overoptimization.proxy), config.best_of.judge
    if proxy:
        find_reward_run(str(proxy), 'overoptimization.proxy')
    if judge and find_reward_run(judge, 'best_of.judge') == proxy:
        raise UserError(
            f'best_of.judge={judge} is the proxy itself: name another reward model'
        )
    if not judge:
        best_of.judge(config.best_of, make_task(config.task, config.seed))


# ---- what the plot is of


def _train_proxy(config, selected, proxy):
    """A reward model on pairs that the model's own replies make."""
    its = _part(config, 'select', selected)
    select_replies.check_config(its)
    print(select_replies.describe(select_replies.select(its, selected)), flush=True)
    run_dir.write_config(its, selected)

    changes = {'reward.preferences': str(selected / 'selected' / 'pairs.jsonl')}
    its = reward.complete(_part(config, 'reward', proxy, changes), proxy)
    reward.check_reward(its)
    ratings.build_ratings(its, proxy)
    run_dir.write_config(its, proxy)
    summary = reward.train_reward(its, proxy)
    if summary['reason'] != 'interrupted':
        evaluate_reward(its, proxy)
    return summary


def _train_policy(config, policy, proxy):
    """PPO against the proxy."""
    its = _part(config, 'ppo', policy)
    its.task.rewards = _rewarded_by(proxy)
    run_dir.check_run(its, policy)
    ppo.check_config(its)
    run_dir.write_config(its, policy)
    return ppo.ppo(its, policy)


def _part(config, name, workdir, changes=None):
    """The config of a stage, with what all of them share."""
    its = config.parts[name].copy_and_resolve_references()
    for shared in ('seed', 'start', 'mesh', 'task'):
        if shared in its:
            its[shared] = config[shared]
    its.update_from_flattened_dict(changes or {})
    its = init_from.inherit_config(its, workdir)
    if name != 'ppo':  # its rewards are still to be set
        run_dir.check_run(its, workdir)
    return its


def _rewarded_by(proxy: Path) -> ConfigDict:
    """The section `task.rewards` with a reward model alone."""
    return ConfigDict(dict(proxy=dict(function='model', weight=1.0, run=str(proxy))))


def _path(given: str) -> Path | None:
    return Path(given).expanduser().absolute() if given else None


# ---- the points of the policy


def _starting_point(one: dict) -> dict:
    """Where both ways begin: one reply of the model itself is the best of one."""
    same = {name: one[name] for name in ('kl', 'sqrt_kl', 'proxy', 'gold')}
    return dict(step=0, kl_interval=[0.0, 0.0], **same)


def _policy_points(config, bench: Bench, sampler: Sampler, policy: Path) -> list[dict]:
    """A point a checkpoint, in order: `step`, `kl`, `sqrt_kl`, `proxy`, `gold`."""
    its = run_dir.read_config(policy)
    checkpoints = Checkpoints(policy / 'checkpoints', {}, read_only=True)
    steps = checkpoints.steps()
    checkpoints.close()
    mesh = inference_mesh(config)
    log_ratios = _make_log_ratios(config, bench, mesh)
    points = []
    with console.progress_bar(
        'judging checkpoints', len(steps), 'checkpoints'
    ) as advance:
        for step in steps:
            trained = load(its, policy, mesh, step)
            if trained.tokenizer.fingerprint != bench.trained.tokenizer.fingerprint:
                raise UserError(
                    f'overoptimization.policy={policy} has another tokenizer than '
                    f'start.run={config.start.run}: name a run that starts from it'
                )
            sampler.update_weights(trained.params, f'{policy} {step}')
            drawn = best_of.draw(
                bench, sampler, config.overoptimization.replies, config.seed, step
            )
            points.append(
                dict(
                    step=step,
                    **_judged(config, bench, drawn, log_ratios(trained.params, drawn)),
                )
            )
            advance(1)
    return points


def _judged(config, bench: Bench, drawn: Rollout, log_ratios_B) -> dict:
    """Means over replies, with bootstrap intervals over problems."""
    per_problem = lambda values: np.reshape(values, (len(bench.items), -1)).mean(axis=1)
    columns = dict(
        items=np.ones(len(bench.items)),
        kl=per_problem(log_ratios_B),
        proxy=per_problem(bench.proxy(drawn.problems, drawn.replies)),
        gold=per_problem(bench.gold(drawn.problems, drawn.replies)),
    )
    how = results.Bootstrap(config.eval.resamples, config.eval.level, config.eval.seed)
    names = ('kl', 'proxy', 'gold')
    means = {name: bootstrap.mean_of(name) for name in names}
    figures = results.figures_of(columns, means, how)
    kl = figures['kl']['value']
    return dict(
        kl=kl,
        kl_interval=figures['kl']['interval'],
        sqrt_kl=math.sqrt(max(kl, 0.0)),  # an estimate: near 0 it can be below
        proxy=figures['proxy'],
        gold=figures['gold'],
        truncation_rate=float(np.mean(drawn.truncated_B)),
    )


def _make_log_ratios(config, bench: Bench, mesh):
    """`log_ratios(params, drawn) -> (B,)`: ln p - ln q of replies drawn from p."""
    settings, temperature = bench.trained.settings, config.best_of.temperature
    base = jax.device_put(bench.trained.params, NamedSharding(mesh, PartitionSpec()))

    @jax.jit
    def of_rows(params, base, batch):
        first, second = (
            reply_sums(
                token_logprobs(settings, weights, batch, temperature)[0],
                batch['weights'],
            )
            for weights in (params, base)
        )
        return first - second

    def log_ratios(params, drawn):
        B = len(drawn.lengths_B)
        parts = []
        with jax.set_mesh(mesh):
            for first in range(0, B, ROWS_AT_ONCE):
                rows = np.arange(first, first + ROWS_AT_ONCE) % B  # a whole batch
                batch = {name: array[rows] for name, array in drawn.batch.items()}
                parts.append(np.asarray(of_rows(params, base, batch)))
        return np.concatenate(parts)[:B]

    return log_ratios
