"""Tasks: problems in three splits, and the verifier that scores replies.

Problems come from `task.path`, a file or a folder, or from the dataset `task.name` of
reasoning-gym. All are different. A hash of the content decides the split (for a folder,
the file does), so splits share no problem, except facts of `skills`, and are the same
for all seeds. The training problem at an index is a function of (seed, index).
"""

import math
from collections.abc import Callable
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
from gptjax.post.problems.skill_problems import skill_problems


class Task(NamedTuple):
    """Problems and their verifier.

    train: index -> training problem. Each epoch is another permutation of all.
    demonstrations: n -> the first n training problems, for `sft` on their answers.
    validation: n -> the first n problems that choose a checkpoint.
    held_out: n -> the first n problems that `eval` reports on.
    score: (problem, reply) -> score of the verifier, 1.0 if the reply is right; None if
        there is no verifier.
    """

    train: Callable[[int], Problem]
    demonstrations: Callable[[int], list[Problem]]
    validation: Callable[[int], list[Problem]]
    held_out: Callable[[int], list[Problem]]
    score: Callable[[Problem, str], float] | None


def make_task(
    section: ConfigDict,
    seed: int,
    fits=lambda messages: True,
    advice: str = 'use shorter prompts',
) -> Task:
    """The task of the config section `task`.

    Args:
        seed: for the order of training problems.
        fits: messages -> whether they leave room for a reply. Problems that do not fit
            are left out, conversations are shortened.
        advice: how to make more of them fit, for the error if there are none.

    Raises:
        UserError: the dataset does not exist, or the options or the file are wrong.
    """
    if not section.path:
        make_problems = skill_problems if section.name == 'skills' else gym_problems
    elif Path(section.path).expanduser().is_dir():
        make_problems = folder_problems
    elif not Path(section.path).expanduser().exists():
        raise UserError(
            f'task.path={section.path} is not there: name a file of problems, or a '
            'folder of conversations as in --config.task.path=runs/sft/dialogue'
        )
    else:
        make_problems = file_problems
    problems_of, score = make_problems(section, fits, advice)
    training_problems = lru_cache(maxsize=1)(
        lambda: problems_of('train', section.problems)
    )
    train = shuffle_epochs(training_problems, seed)
    if section.chats:
        open_problems = lru_cache(maxsize=1)(lambda: read_chats(section, fits, advice))
        train = mix(train, shuffle_epochs(open_problems, seed), section.chat_share)
        score = score and score_answered(score)
    return Task(
        train=train,
        demonstrations=lambda n: training_problems()[:n],
        validation=lru_cache(maxsize=1)(partial(problems_of, 'validation')),
        held_out=partial(problems_of, 'held_out'),
        score=score,
    )


def read_chats(section: ConfigDict, fits, advice: str) -> list[Problem]:
    """The training problems of the folder `task.chats`; they have no answer."""
    chats = section.copy_and_resolve_references()
    chats.path = section.chats
    problems_of, _ = folder_problems(chats, fits, advice, 'task.chats')
    return problems_of('train', section.problems)


def shuffle_epochs(
    problems: Callable[[], list[Problem]], seed: int
) -> Callable[[int], Problem]:
    """index -> problem; each epoch is another permutation of all."""

    @lru_cache(maxsize=2)
    def order(epoch):
        rng = np.random.default_rng([seed, epoch])
        return rng.permutation(len(problems()))

    def problem_at(index):
        epoch, place = divmod(index, len(problems()))
        return problems()[order(epoch)[place]]

    return problem_at


def mix(
    first: Callable[[int], Problem], second: Callable[[int], Problem], share: float
) -> Callable[[int], Problem]:
    """index -> problem, of which `share` are of the second source, evenly spread.

    share 1/4:  first 0, first 1, first 2, second 0, first 3, …
    """

    def problem_at(index):
        before, after = (math.floor(share * place) for place in (index, index + 1))
        return second(before) if after > before else first(index - before)

    return problem_at


def score_answered(score):
    """The verifier, with 0 for problems without an answer."""
    return lambda problem, reply: score(problem, reply) if problem.answer else 0.0


def problems_fingerprint(section: ConfigDict) -> str:
    """A hash of the source of problems; for files, of their content."""
    if section.chats:
        chats = _files_fingerprint('task.chats', section.chats)
        section = section.copy_and_resolve_references()
        section.chats = ''
        return storage.fingerprint([problems_fingerprint(section), chats])
    if not section.path:
        return storage.fingerprint([section.name, section.options.to_dict()])
    return _files_fingerprint('task.path', section.path)


def problem_inputs(section: dict) -> dict:
    """The fields of `task` that problems are made from, for a manifest.

    Without chats it has no field of them, as in manifests of older versions.
    """
    inputs = {f'task.{name}': value for name, value in section.items()}
    if not section['chats']:
        del inputs['task.chats'], inputs['task.chat_share']
    for part in inputs['task.rewards'].values():
        if part.get('on') == 'all':
            del part['on']
    return inputs


def _files_fingerprint(field: str, path: str) -> str:
    """A hash of the content of a file of problems or a folder of conversations."""
    path = Path(path).expanduser()
    files = [path / name for name in CONVERSATIONS] if path.is_dir() else [path]
    try:
        return storage.fingerprint([storage.sha256_of_file(file) for file in files])
    except OSError as error:
        raise UserError(
            f'{field}={path}: {error}: name a file of problems or a folder of '
            'conversations'
        ) from error


# ---- RUN/task: problems with their answers as conversations


def write_task(config: ConfigDict, workdir: Path) -> dict:
    """Writes RUN/task and returns the manifest. Each problem is a conversation.

        RUN/task/train.jsonl, validation.jsonl, held_out.jsonl

    train.jsonl has the first `task.demonstrations` training problems.
    """
    section = config.task
    # Prompts of chats have no answers, so they are no demonstrations.
    section = section.copy_and_resolve_references()
    section.chats = ''
    inputs = problem_inputs(section.to_dict())
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
            chats = []
            for problem in problems:
                if not problem.answer:
                    raise UserError(
                        f'task.path={section.path}: the problem {problem.id} has no '
                        'answer to train on: add "answer"'
                    )
                reply = dict(role='assistant', content=problem.answer)
                chats.append(dict(id=problem.id, messages=[*problem.messages, reply]))
            storage.write_jsonl(files[split], chats)
        return dict(
            problems={split: len(problems) for split, problems in splits.items()},
            sha256={s: storage.sha256_of_file(path) for s, path in files.items()},
        )

    needs = [f'{split}.jsonl' for split in SPLITS]
    return artifact.build(workdir / 'task', inputs, make, needs)


def describe_problems(manifest: dict) -> str:
    counts = [f'{count:,} {split}' for split, count in manifest['problems'].items()]
    return f'problems: {", ".join(counts)}'


PROBLEMS = artifact.Artifact('task', write_task, describe_problems)
