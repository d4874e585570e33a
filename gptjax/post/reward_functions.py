"""Reward functions, and weighted sums of them.

To add one, write it here and name it in REWARDS, or install a package with it and give
its full name, as 'package.module.function': a config names functions and never holds
code. A reward function takes N problems and N replies to them and returns N numbers.
"""

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gptjax.core import run_dir, storage
from gptjax.core.console import UserError
from gptjax.post.problems.problem_sources import Problem
from gptjax.post.problems.verifiable_tasks import Task
from gptjax.post.reward_model import RESULTS, load_reward_function
from gptjax.train.load_model import inference_mesh

Reward = Callable[[Sequence[Problem], Sequence[str]], np.ndarray]


def correct(task: Task) -> Reward:
    """1.0 where the task's verifier is fully satisfied, else 0.0."""
    score = verifier_reward(_require_verifier(task, 'correct'))
    return lambda problems, replies: score(problems, replies) >= 1.0


def score(task: Task) -> Reward:
    """The verifier's score, which may give parts: 0.5 for '18' where '8' is right."""
    return verifier_reward(_require_verifier(task, 'score'))


def shortness(task: Task) -> Reward:
    """1 / (1 + words): an example of a reward that needs no verifier."""
    del task
    return lambda problems, replies: [1 / (1 + len(reply.split())) for reply in replies]


REWARDS = dict(correct=correct, score=score, shortness=shortness)


def model_reward(run: str, field: str) -> Reward:
    """The reward model of a run of the stage `reward`, on prompt and reply.

    Raises:
        UserError: there is none; the message names the config field.
    """
    workdir = find_reward_run(run, field)
    config = run_dir.read_config(workdir)
    rewards = load_reward_function(config, workdir, inference_mesh(config))

    def reward(problems, replies):
        message = lambda reply: dict(role='assistant', content=reply)
        pairs = zip(problems, replies, strict=True)
        return rewards(
            [[*problem.messages, message(reply)] for problem, reply in pairs]
        )

    return reward


def find_reward_run(run: str, field: str) -> Path:
    """The directory of a run of the stage `reward` that has ended.

    Raises:
        UserError: there is none.
    """
    folder = Path(run).expanduser().absolute()
    if not run or not (folder / RESULTS).exists():
        raise UserError(
            f'{field}={run}: is no finished run of the stage reward: name one, or make '
            'it with `python -m gptjax reward`'
        )
    return folder


def rewards_fingerprint(section: ConfigDict) -> str:
    """A hash of `task.rewards`, and of the results of the reward models in it.

    Raises:
        UserError: a run is not there.
    """
    reward_models = {
        name: storage.sha256_of_file(
            find_reward_run(part.run, f'task.rewards.{name}.run') / RESULTS
        )
        for name, part in section.rewards.items()
        if part.function == 'model'
    }
    return storage.fingerprint([run_dir.to_json(section.rewards), reward_models])


def make_reward(section: ConfigDict, task: Task) -> Reward:
    """The sum of weight x reward of the rewards in `task.rewards`, float32 (N,).

    Raises:
        UserError: a function does not exist, or needs a verifier and there is none. The
            reward itself raises one where a function raises or does not return a finite
            number for each reply; it names the reward and the problem.
    """
    if not section.rewards:
        raise UserError('task.rewards is empty: name one, as correct')
    parts = []
    for name, part in section.rewards.items():
        if part.function == 'model':
            function = model_reward(part.run, f'task.rewards.{name}.run')
        elif part.function in REWARDS:
            function = REWARDS[part.function](task)
        else:
            function = _import_reward(f'task.rewards.{name}.function', part.function)
        parts.append((f'task.rewards.{name}', part.weight, function))

    def reward(problems, replies):
        total = np.zeros(len(problems), np.float32)
        for name, weight, function in parts:
            total += np.float32(weight) * compute_rewards(
                name, function, problems, replies
            )
        return total

    return reward


def compute_rewards(
    name: str, function: Reward, problems: Sequence[Problem], replies: Sequence[str]
) -> np.ndarray:
    """The rewards of a function, float32 (N,), or one clear error.

    Raises:
        UserError: it raised, or returned too many, too few, NaN or infinite numbers.
    """
    try:
        values = np.asarray(function(problems, replies), np.float32)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f'{name} raised {type(error).__name__}: {error} on replies to '
            f'{_find_failing_problem(function, problems, replies)}: mend the '
            'function; the last checkpoint stays'
        ) from error
    if values.shape != (len(problems),):
        raise UserError(
            f'{name} gave the shape {values.shape} for {len(problems)} replies (the '
            f'first to {problems[0].id}): give one number a reply'
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        place = bad[0]
        raise UserError(
            f'{name} gave {values[place]} for the reply {replies[place][:80]!r} to '
            f'{problems[place].id}: give finite numbers; the last checkpoint stays'
        )
    return values


def _find_failing_problem(function, problems, replies) -> str:
    """The first problem on which the function raises alone, for the message."""
    for problem, reply in zip(problems, replies, strict=True):
        try:
            function([problem], [reply])
        except Exception:  # noqa: BLE001 (whatever it is, it was reported)
            return f'{problem.id} (the reply {reply[:80]!r})'
    return f'{problems[0].id} and {len(problems) - 1} others together'


def verifier_reward(score: Callable[[Problem, str], float]) -> Reward:
    """The reward function of a task's `score`."""

    def score_all(problems, replies):
        return [
            score(problem, reply)
            for problem, reply in zip(problems, replies, strict=True)
        ]

    return partial(compute_rewards, 'the verifier', score_all)


def _require_verifier(task, name):
    if task.score is None:
        raise UserError(
            f'the reward {name} needs answers, and task.path has problems without: '
            'add "answer" to each line, or let a reward model judge, as --config '
            'configs/ppo.py:reward=RUN'
        )
    return task.score


def _import_reward(field, path) -> Reward:
    module, _, name = path.rpartition('.')
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f'{field}={path}: {error}: use one of {", ".join(REWARDS)}, model, or the '
            'full name of a function that can be imported'
        ) from error
    if not callable(function):
        raise UserError(f'{field}={path} is no function: name one')
    return function
