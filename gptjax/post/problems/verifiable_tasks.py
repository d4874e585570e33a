"""A task: problems in three splits, and the verifier that scores replies to them.

The problems are those of `task.path`, a file or a folder, or of the dataset `task.name`
of reasoning-gym. Each problem occurs once. A hash of its content alone decides its
split, so no two splits share a problem and all seeds have the same; in a folder the
files decide. Which training problem comes at an index is a function of (seed, index).
"""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from gptjax.core import artifact, storage
from gptjax.core.console import UserError
from gptjax.post.problems.problem_sources import (
    CONVERSATIONS,
    SPLITS,
    Problem,
    file_problems,
    folder_problems,
    gym_problems,
)


class Task(NamedTuple):
    """Problems and their verifier.

    train: from an index to a training problem: a permutation of all of them, then
        another.
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
        seed: of the order of training problems.
        fits: whether a prompt leaves room for a reply; problems that do not fit are
            left out, conversations shortened.

    Raises:
        UserError: there is no such dataset, or its options or the file make no sense.
    """
    if not section.path:
        make_problems = gym_problems
    elif Path(section.path).expanduser().is_dir():
        make_problems = folder_problems
    else:
        make_problems = file_problems
    problems_of, score = make_problems(section, fits)
    training_problems = lru_cache(maxsize=1)(
        lambda: problems_of('train', section.problems)
    )

    @lru_cache(maxsize=2)
    def order(epoch):
        rng = np.random.default_rng([seed, epoch])
        return rng.permutation(len(training_problems()))

    def train(index):
        epoch, place = divmod(index, len(training_problems()))
        return training_problems()[order(epoch)[place]]

    return Task(
        train=train,
        demonstrations=lambda n: training_problems()[:n],
        validation=lru_cache(maxsize=1)(partial(problems_of, 'validation')),
        held_out=partial(problems_of, 'held_out'),
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
    files = [path / name for name in CONVERSATIONS] if path.is_dir() else [path]
    try:
        return storage.fingerprint([storage.sha256_of_file(file) for file in files])
    except OSError as error:
        raise UserError(
            f'task.path={path}: {error}: name a file of problems or a folder of '
            'conversations'
        ) from error


# ---- the artifact: problems and their answers as conversations


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
        splits = dict(
            train=task.demonstrations(section.demonstrations),
            validation=task.validation(section.validation),
            held_out=task.held_out(section.held_out),
        )
        files = {split: folder / f'{split}.jsonl' for split in splits}
        for split, problems in splits.items():
            write_chats(problems, files[split])
        return dict(
            problems={split: len(problems) for split, problems in splits.items()},
            sha256={s: storage.sha256_of_file(path) for s, path in files.items()},
        )

    needs = [f'{split}.jsonl' for split in SPLITS]
    return artifact.build(workdir / 'task', inputs, make, needs)


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


def describe_problems(manifest: dict) -> str:
    counts = [f'{count:,} {split}' for split, count in manifest['problems'].items()]
    return f'problems: {", ".join(counts)}'


PROBLEMS = artifact.Artifact('task', write_task, describe_problems)
