"""Reward functions, and weighted sums of them.

A reward function takes N problems and N replies to them, which are strings with the
attribute `truncated` (`rollout.ReplyText`), and returns N numbers. To add
one, write it here and name it in REWARDS, or put its full name into the config, like
'package.module.function'. A config never contains code.
"""

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gptjax.core import run_dir, storage
from gptjax.core.console import UserError
from gptjax.parallel import multihost
from gptjax.post.problems.problem_sources import Problem
from gptjax.post.problems.verifiable_tasks import Task
from gptjax.post.reward_model import RESULTS, load_reward_function
from gptjax.train.load_model import inference_mesh

ALL = ('on', 'all')  # the default of a part of task.rewards
Reward = Callable[[Sequence[Problem], Sequence[str]], np.ndarray]


def correct(task: Task) -> Reward:
    """1.0 where the verifier of the task gives at least 1, else 0.0."""
    score = verifier_reward(_require_verifier(task, 'correct'))
    return lambda problems, replies: score(problems, replies) >= 1.0


def score(task: Task) -> Reward:
    """The score of the verifier, which may be partial: 0.5 for '18' if '8' is right."""
    return verifier_reward(_require_verifier(task, 'score'))


def shortness(task: Task) -> Reward:
    """1 / (1 + number of words): an example that needs no verifier."""
    del task
    return lambda problems, replies: [1 / (1 + len(reply.split())) for reply in replies]


REWARDS = dict(correct=correct, score=score, shortness=shortness)


def model_reward(run: str, field: str) -> Reward:
    """The reward of prompt and reply by the reward model of a run.

    `field` is the config field that the error names if there is none.
    """
    workdir = find_reward_run(run, field)
    config = run_dir.read_config(workdir)
    rewards = load_reward_function(config, workdir, inference_mesh(config))

    def reward(problems, replies):
        conversations = [
            [*problem.messages, dict(role='assistant', content=reply)]
            for problem, reply in zip(problems, replies, strict=True)
        ]
        return rewards(
            conversations, [getattr(reply, 'truncated', False) for reply in replies]
        )

    return reward


def find_reward_run(run: str, field: str) -> Path:
    """The directory of a finished run of the stage `reward`, or a UserError."""
    folder = Path(run).expanduser().absolute()
    if not run or not (folder / RESULTS).exists():
        raise UserError(
            f'{field}={run} is not a finished run of the stage reward: name one, or '
            'make it with `python -m gptjax reward`'
        )
    return folder


def rewards_fingerprint(section: ConfigDict) -> str:
    """A hash of `task.rewards` and of the results of the reward models in it."""
    reward_models = {
        name: storage.sha256_of_file(
            find_reward_run(part.run, f'task.rewards.{name}.run') / RESULTS
        )
        for name, part in section.rewards.items()
        if part.function == 'model'
    }
    parts = {
        # Older runs were made without the field, and keep their hash.
        name: {key: value for key, value in part.items() if (key, value) != ALL}
        for name, part in run_dir.to_json(section.rewards).items()
    }
    return storage.fingerprint([parts, reward_models])


def make_reward(section: ConfigDict, task: Task) -> Reward:
    """The sum of weight x reward over `task.rewards`, float32 (N,).

    Raises:
        UserError: a function does not exist, or needs a verifier and there is none. The
            returned function raises one if a reward cannot be computed.
    """
    if not section.rewards:
        raise UserError('task.rewards is empty: name a reward, for example correct')
    parts = []
    for name, part in section.rewards.items():
        if part.function == 'model':
            function = model_reward(part.run, f'task.rewards.{name}.run')
        elif part.function in REWARDS:
            function = REWARDS[part.function](task)
        else:
            function = _import_reward(f'task.rewards.{name}.function', part.function)
        parts.append((f'task.rewards.{name}', part, function))

    def reward(problems, replies):
        total = np.zeros(len(problems), np.float32)
        for name, part, function in parts:
            on = part.get('on', 'all')  # older configs have none
            counts = [on in ('all', kind_of(problem)) for problem in problems]
            if any(counts):
                total[counts] += np.float32(part.weight) * compute_rewards(
                    name,
                    function,
                    list(compress(problems, counts)),
                    list(compress(replies, counts)),
                )
        return total

    return reward


def kind_of(problem: Problem) -> str:
    """'answered' or 'open', as in `task.rewards.NAME.on`."""
    return 'answered' if problem.answer else 'open'


def compute_rewards(
    name: str, function: Reward, problems: Sequence[Problem], replies: Sequence[str]
) -> np.ndarray:
    """The rewards of a function, float32 (N,).

    Raises:
        UserError: the function raised, or did not return N finite numbers. The message
            has `name` and the problem.
    """
    try:
        values = np.asarray(function(problems, replies), np.float32)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f'{name} raised {type(error).__name__}: {error} on replies to '
            f'{_find_failing_problem(function, problems, replies)}: fix the function; '
            'the last checkpoint is kept'
        ) from error
    if values.shape != (len(problems),):
        raise UserError(
            f'{name} returned the shape {values.shape} for {len(problems)} replies '
            f'(the first to {problems[0].id}): return one number per reply'
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        first = bad[0]
        raise UserError(
            f'{name} returned {values[first]} for the reply {replies[first][:80]!r} to '
            f'{problems[first].id}: return finite numbers; the last checkpoint is kept'
        )
    return values


def _find_failing_problem(function, problems, replies) -> str:
    """The first problem on which the function raises, for the message."""
    for problem, reply in zip(problems, replies, strict=True):
        try:
            function([problem], [reply])
        except Exception:  # noqa: BLE001 (the caller reports it)
            return f'{problem.id} (the reply {reply[:80]!r})'
    return f'{problems[0].id} and {len(problems) - 1} others together'


def verifier_reward(score: Callable[[Problem, str], float]) -> Reward:
    """The reward function of a verifier, `Task.score`."""
    score_all = lambda problems, replies: list(map(score, problems, replies))
    return partial(compute_rewards, 'the verifier', score_all)


def on_first_process(reward: Reward) -> Reward:
    """The reward, computed once and sent to all processes, as it may be random."""
    return lambda problems, replies: multihost.compute_on_first_process(
        partial(reward, problems, replies), len(problems)
    )


def _require_verifier(task, name):
    if task.score is None:
        raise UserError(
            f'the reward {name} needs answers, but some problems of task.path have '
            'none: add "answer" to each line, or use a reward model, as with --config '
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
        raise UserError(f'{field}={path} is not a function: name a function')
    return function
