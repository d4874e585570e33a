"""Problems that a reply can be judged on: where they come from, and who holds which.

A task is procedural (any dataset of reasoning-gym, whose verifier judges), a file of
problems, or a folder of conversations (prompts alone). Each problem is there once, and
belongs to one of three parts by a hash of its content alone, so the parts share none;
those of a folder are as it holds them. The parts are the same for every seed; which
training problem stands at an index is a function of (seed, index).
"""

import itertools
import json
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from gptjax.core import artifact, storage
from gptjax.core.console import UserError
from gptjax.core.hashing import hash_integer
from gptjax.post.problems.own_problems import CONVERSATIONS, file_task, folder_task
from gptjax.post.problems.problem import PARTS, Problem, part_of

TRIES = 10_000  # draws in a row without a new problem: there are no more


class Task(NamedTuple):
    """Problems and their judge.

    train: from an index to a training problem: all of them in a drawn order, then
        all again in another.
    demonstrations: from n to the first n training problems, to learn the answers of.
    validation: from n to the first n problems to choose a checkpoint by.
    held_out: from n to the first n problems to report on.
    score: from a problem and a reply to the verifier's score, 1.0 where it is right;
        None where there is no verifier.
    """

    train: Callable[[int], Problem]
    demonstrations: Callable[[int], list[Problem]]
    validation: Callable[[int], list[Problem]]
    held_out: Callable[[int], list[Problem]]
    score: Callable[[Problem, str], float] | None


def make_task(section: ConfigDict, seed: int, fits=lambda messages: True) -> Task:
    """The task of a config's section `task`.

    Args:
        section: the task section.
        seed: of the order of training problems.
        fits: whether a prompt leaves room for a reply; problems that do not fit are
            left out, conversations shortened.

    Raises:
        UserError: there is no such dataset, or its options or the file make no sense.
    """
    path = Path(section.path).expanduser()
    if section.path and path.is_dir():
        first, score = folder_task(section, fits), None
    elif section.path:
        first, score = file_task(section, fits)
    else:
        first, score = _gym_task(section, fits)
    pool = lru_cache(maxsize=1)(lambda: first('train', section.problems))

    @lru_cache(maxsize=2)
    def order(epoch):
        return np.random.default_rng([seed, epoch]).permutation(len(pool()))

    def train(index):
        epoch, place = divmod(index, len(pool()))
        return pool()[order(epoch)[place]]

    return Task(
        train=train,
        demonstrations=lambda n: pool()[:n],
        validation=lru_cache(maxsize=1)(partial(first, 'validation')),
        held_out=partial(first, 'held_out'),
        score=score,
    )


def problems_fingerprint(section: ConfigDict) -> str:
    """A hash of where the problems come from: of files, of what is in them.

    Raises:
        UserError: a file cannot be read.
    """
    if not section.path:
        return storage.fingerprint([section.name, section.options.to_dict()])
    path = Path(section.path).expanduser()
    its = [path / name for name in CONVERSATIONS] if path.is_dir() else [path]
    try:
        return storage.fingerprint([storage.sha256_of_file(file) for file in its])
    except OSError as error:
        raise UserError(
            f'task.path={path}: {error}: name a file of problems or a folder of '
            'conversations'
        ) from error


def write_chats(problems: Sequence[Problem], path: Path) -> None:
    """Problems with their answers as a file of `messages`, one conversation a line.

    Raises:
        UserError: a problem without an answer.
    """
    lines = []
    for problem in problems:
        if not problem.answer:
            raise UserError(f'the problem {problem.id} has no answer to learn from')
        reply = dict(role='assistant', content=problem.answer)
        chat = dict(id=problem.id, messages=[*problem.messages, reply])
        lines.append(json.dumps(chat, ensure_ascii=False))
    storage.write_text(path, '\n'.join(lines) + '\n')


def write_task(config: ConfigDict, workdir: Path) -> dict:
    """Makes RUN/task, conversations whose last message is the right answer.

        RUN/task/train.jsonl, validation.jsonl, held_out.jsonl

    The first has the demonstrations, which are some of the training problems.

    Returns:
        The manifest, with the number of `problems` of each file.
    """
    section = config.task
    inputs = {f'task.{name}': value for name, value in section.to_dict().items()}
    inputs['problems'] = problems_fingerprint(section)

    def make(folder: Path) -> dict:
        task = make_task(section, config.seed)
        parts = dict(
            train=task.demonstrations(section.demonstrations),
            validation=task.validation(section.validation),
            held_out=task.held_out(section.held_out),
        )
        for name, problems in parts.items():
            write_chats(problems, folder / f'{name}.jsonl')
        return dict(
            problems={name: len(problems) for name, problems in parts.items()},
            sha256={
                name: storage.sha256_of_file(folder / f'{name}.jsonl') for name in parts
            },
        )

    needs = [f'{part}.jsonl' for part in PARTS]
    return artifact.build(workdir / 'task', inputs, make, needs)


def describe_problems(manifest: dict) -> str:
    counts = [f'{count:,} {part}' for part, count in manifest['problems'].items()]
    return f'problems: {", ".join(counts)}'


PROBLEMS = artifact.Artifact('task', write_task, describe_problems)


# ---- reasoning-gym


def _gym_task(section, fits):
    """(`first(part, n)`, score) of a reasoning-gym dataset.

    Its own problems are functions of the sum of seed and index, so that neighbouring
    seeds share all but one: here the index is a hash.
    """
    dataset = gym_dataset(section.name, section.options.to_dict())

    def make_problem(part, place):
        index = hash_integer(part, place, num_bytes=6)
        entry = dataset[index]
        message = dict(role='user', content=entry['question'])
        return Problem(
            id=storage.fingerprint([section.name, entry['question']])[:16],
            messages=(message,),
            answer=str(entry['answer']),
            meta=entry,
        )

    def first(part, n):
        found, since = {}, 0
        for place in itertools.count():
            if len(found) == n or since == TRIES:
                break
            problem = make_problem(part, place)
            since += 1
            its = part_of(problem.id, section.held_out_fraction)
            if its == part and problem.id not in found and fits(problem.messages):
                found[problem.id], since = problem, 0
        if not found:
            raise UserError(
                f'task.name={section.name}: no {part} problem fits the context in '
                f'{TRIES:,} draws: change task.options or data.context, or lower '
                'max_tokens of replies'
            )
        return list(found.values())

    def score(problem, reply):
        try:
            return float(dataset.score_answer(reply, problem.meta))
        except Exception:  # noqa: BLE001
            # Some of the package's verifiers parse a reply and raise whatever comes
            # where it has another form: to them, and so here, it is not right. One
            # that raises at the right answer too is broken, and is heard.
            dataset.score_answer(problem.answer, problem.meta)
            return 0.0

    return first, score


def gym_dataset(name: str, options: dict):
    """A dataset of reasoning-gym.

    Raises:
        UserError: the package is not there, has no such dataset, or that has other
            options.
    """
    try:
        with warnings.catch_warnings():  # of a package that it imports
            warnings.simplefilter('ignore', SyntaxWarning)
            import reasoning_gym
    except ImportError as error:
        raise UserError(
            f'task.name={name} needs the package reasoning-gym: pip install '
            'reasoning-gym, or give problems of your own in task.path'
        ) from error
    from reasoning_gym import factory

    if name not in factory.DATASETS:
        raise UserError(
            f'task.name={name}: reasoning-gym has no such dataset: use one of '
            f'{", ".join(sorted(factory.DATASETS))}'
        )
    try:
        return reasoning_gym.create_dataset(name, seed=0, size=2**48, **options)
    except (TypeError, AssertionError, ValueError) as error:
        raise UserError(f'task.options of {name}: {error}: change them') from error
