"""Sources of problems: reasoning-gym, a file of the user, or a folder of conversations.

Each source is a function of the section `task`, of `fits(messages)`, which says if a
prompt leaves room for a reply, and of `advice` on this room, for the error if there are
no problems. It returns two functions:

    problems_of(split, n)     the first n problems of 'train', 'validation', 'held_out'
    score(problem, reply)     the score of the verifier, 1.0 if the reply is right; None
                              in place of the function if there is no verifier
"""

import itertools
import warnings
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from gptjax.core import artifact, console, storage
from gptjax.core.console import UserError
from gptjax.core.files import File, read_json_lines
from gptjax.core.hashing import hash_fraction, hash_integer
from gptjax.data.conversations import choose_replies, conversation_id
from gptjax.data.render_process import RefusedMessages
from gptjax.data.sources.records import record_messages
from gptjax.data.splits import describe_shared, fill_splits
from gptjax.parallel.multihost import print_once

SPLITS = ('train', 'validation', 'held_out')
MAX_DRAWS = 10_000  # in a row without a new problem, before the search ends
LINE = '{"prompt": "…", "answer": "…"}'
FORM = f'{LINE}, or "messages" instead of "prompt"'
CONVERSATIONS = ('train.jsonl', 'validation.jsonl')  # the files in a folder


class Problem(NamedTuple):
    """A prompt that a reply can be right or wrong for.

    id: a hash of the content, so equal problems have equal ids.
    messages: the prompt, dicts of `role` and `content`.
    answer: a right reply, or '' if none is known.
    meta: data for a verifier or a reward function.
    """

    id: str
    messages: tuple[dict, ...]
    answer: str = ''
    meta: Any = None


def choose_split(problem_id: str, fraction: float) -> str:
    """'held_out', 'validation' or 'train', by a hash of the problem.

    The hash differs from the one that splits documents: the stage `sft` splits the
    training problems by that one, and all of them would be on the same side.
    """
    place = hash_fraction('part of the task', problem_id)
    if place < fraction:
        return 'held_out'
    return 'validation' if place < 2 * fraction else 'train'


# ---- reasoning-gym


def gym_problems(section: ConfigDict, fits, advice: str):
    """Problems of a dataset of reasoning-gym with its verifier.

    The package seeds a problem by seed + index, so neighbouring seeds share almost all
    problems. Here the index is a hash.
    """
    dataset = make_gym_dataset(section.name, section.options.to_dict())

    def problems_of(split, n):
        problems, draws_without_new, num_too_long = {}, 0, 0
        for place in itertools.count():
            if len(problems) == n or draws_without_new == MAX_DRAWS:
                break
            entry = dataset[hash_integer(split, place, num_bytes=6)]
            problem = Problem(
                id=storage.fingerprint([section.name, entry['question']])[:16],
                messages=(dict(role='user', content=entry['question']),),
                answer=str(entry['answer']),
                meta=entry,
            )
            draws_without_new += 1
            if (
                choose_split(problem.id, section.held_out_fraction) != split
                or problem.id in problems
            ):
                continue
            if fits(problem.messages):
                problems[problem.id], draws_without_new = problem, 0
            else:
                num_too_long += 1
        if not problems:
            fix = ' so that there are more problems, or task.held_out_fraction'
            if num_too_long:
                fix = f', or {advice}'
            raise UserError(
                f'task.name={section.name}: none of {MAX_DRAWS:,} draws is a problem '
                f'of the split {split} that fits the context ({num_too_long:,} are '
                f'too long): change task.options{fix}'
            )
        return list(problems.values())

    def score(problem, reply):
        try:
            return float(dataset.score_answer(reply, problem.meta))
        except Exception:  # noqa: BLE001
            # Some verifiers parse the reply, and raise if they cannot: the reply is
            # wrong. A verifier that also raises for the right answer is broken, and
            # the user sees its error.
            dataset.score_answer(problem.answer, problem.meta)
            return 0.0

    return problems_of, score


def make_gym_dataset(name: str, options: dict):
    """A dataset of reasoning-gym."""
    try:
        with warnings.catch_warnings():  # one of its dependencies warns
            warnings.simplefilter('ignore', SyntaxWarning)
            import reasoning_gym
    except ImportError as error:
        raise UserError(
            f'task.name={name} needs the package reasoning-gym: pip install '
            'reasoning-gym, or use your own problems with task.path'
        ) from error
    from reasoning_gym import factory

    if name not in factory.DATASETS:
        raise UserError(
            f'task.name={name}: reasoning-gym has no such dataset: use skills (our '
            f'own) or one of {", ".join(sorted(factory.DATASETS))}'
        )
    try:
        return reasoning_gym.create_dataset(name, seed=0, size=2**48, **options)
    except (TypeError, AssertionError, ValueError) as error:
        raise UserError(f'task.options of {name}: {error}: change them') from error


# ---- a file


def file_problems(section: ConfigDict, fits, advice: str):
    """The problems of a JSON Lines file; a reply is right if it equals the answer."""
    path = Path(section.path).expanduser()
    problems, num_equal = read_problems(path)
    fitting = [problem for problem in problems if fits(problem.messages)]
    numbers = fill_splits(
        [problem.id for problem in fitting],
        lambda name: choose_split(name, section.held_out_fraction),
        SPLITS,
    )
    splits = {split: [fitting[n] for n in chosen] for split, chosen in numbers.items()}
    report_splits(section, splits, len(problems) - len(fitting), num_equal, advice)
    answered = all(p.answer for split in splits.values() for p in split)
    equals = lambda problem, reply: float(reply.strip() == problem.answer.strip())
    return lambda split, n: splits[split][:n], equals if answered else None


def read_problems(path: Path) -> tuple[list[Problem], int]:
    """(the different problems of a JSON Lines file, the number of repetitions).

    A line is `{"prompt": "…", "answer": "…"}`, or has `messages` instead of `prompt`.
    The answer is optional. If the last message is of the assistant, it is the answer.

    Raises:
        UserError: a line has another form, or two lines have the same prompt and
            different answers.
    """
    problems, first_lines, num_equal = {}, {}, 0
    file = File(str(path), path.name)
    for number, where, value in read_json_lines(file, 'task.path', LINE):
        problem = _parse_problem(value, where)
        first = problems.setdefault(problem.id, problem)
        if first.answer != problem.answer:
            raise UserError(
                f'task.path={path}: lines {first_lines[problem.id]} and {number} have '
                'the same prompt and different answers: keep one of them'
            )
        num_equal += problem.id in first_lines
        first_lines.setdefault(problem.id, number)
    if not problems:
        raise UserError(f'task.path={path} is empty: write one problem per line')
    return list(problems.values()), num_equal


def _parse_problem(value: dict, location: str) -> Problem:
    record = value
    if value.get('messages') is None and value.get('prompt') is not None:
        record = {**value, 'messages': [dict(role='user', content=value['prompt'])]}
    messages = record_messages(record, 'messages', location, FORM)
    answer = '' if value.get('answer') is None else value['answer']
    if messages[-1]['role'] == 'assistant':
        *messages, last = messages
        if 'train' in last:
            raise UserError(
                f'{location}: the answer has weight 0, or train false: give a right '
                'answer, or leave out this message'
            )
        answer = answer or last['content']
    if not messages or not isinstance(answer, str):
        raise UserError(
            f'{location} has no message to reply to, or an answer that is not a string:'
            f' write {FORM}'
        )
    return Problem(storage.fingerprint(messages)[:16], tuple(messages), answer, value)


def report_splits(
    section: ConfigDict,
    splits: dict,
    num_too_long: int,
    num_equal: int,
    advice: str,
    field: str = 'task.path',
    others: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Refuses an empty split; prints the sizes, and why problems were left out.

    Args:
        splits: the problems that fit.
        num_too_long: number of problems that do not fit.
        num_equal: number of repetitions.
        advice: how to make more problems fit.
        field: the config field that names the source.
        others: numbers of other problems that are left out, by reason.
    """
    sizes = {split: len(problems) for split, problems in splits.items()}
    too_long = f' ({num_too_long:,} are too long): {advice},' if num_too_long else ':'
    for split, size in sizes.items():
        if not size:
            raise UserError(
                f'{field}={section.path}: no problem that fits the context is in the '
                f'split {split}{too_long} give more problems, or change '
                'task.held_out_fraction'
            )
    train = min(sizes['train'], section.problems)
    different = {problem.id for problems in splits.values() for problem in problems}
    left_out = {
        'equal prompts': num_equal,
        'data.context (too long)': num_too_long,
        f'task.problems={section.problems}': sizes['train'] - train,
        **others,
    }
    total = len(different) + num_too_long + num_equal + sum(others.values())
    lines = console.join_lines(
        console.describe_left_out(left_out, total, 'problems'),
        describe_shared(splits, 'problems'),
        f'problems: {train:,} for training, {sizes["validation"]:,} for validation, '
        f'{sizes["held_out"]:,} held out',
    )
    print_once(lines)


# ---- a folder of conversations


def folder_problems(section: ConfigDict, fits, advice: str, field: str = 'task.path'):
    """The messages before one reply in each conversation; there is no verifier.

    The reply is chosen as in evaluation. A prompt that does not fit loses its first
    messages. A conversation of validation.jsonl is a validation or a held-out problem
    with equal probability, by a hash of its id.
    """
    folder = Path(section.path).expanduser()
    if artifact.is_unfinished(folder):
        raise UserError(
            f'{field}={folder} is not complete: run the stage that makes it again'
        )
    problems, seen = {name: [] for name in CONVERSATIONS}, set()
    num_equal, num_too_long, refusals = 0, 0, []
    for name in reversed(CONVERSATIONS):  # so that held-out prompts are not trained on
        for view, prompt, _ in _choose_replies(folder / name, field):
            try:
                messages = _shorten(prompt, fits)
            except RefusedMessages as error:
                refusals.append(error)
                continue
            problem = Problem(storage.fingerprint(messages)[:16], messages)
            num_equal += problem.id in seen
            num_too_long += not messages
            if messages and problem.id not in seen:
                problems[name].append((conversation_id(view), problem))
                seen.add(problem.id)
    held_out = problems['validation.jsonl']
    numbers = fill_splits(
        [name for name, _ in held_out],
        lambda name: choose_split(name, 0.5),
        SPLITS[1:],
    )
    splits = {split: [held_out[n][1] for n in numbers[split]] for split in numbers}
    splits['train'] = [problem for _, problem in problems['train.jsonl']]
    if refusals and not any(problems.values()):
        raise refusals[-1]
    refused = {'the chat template (it refuses them)': len(refusals)}
    report_splits(section, splits, num_too_long, num_equal, advice, field, refused)
    return lambda split, n: splits[split][:n], None


def _choose_replies(path: Path, field: str):
    """`choose_replies` for a file of conversations."""
    hint = 'name a file of problems, or a folder of the stage sft, such as RUN/dialogue'
    file = File(str(path), path.name)
    try:
        views = [view for _, _, view in read_json_lines(file, field)]
    except UserError as error:
        raise UserError(f'{error}; {hint}') from error
    try:
        return choose_replies(views, 0, 0)
    except UserError as error:
        raise UserError(
            f'{field}={path}: no conversation has a reply to a user: {hint}'
        ) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{field}={path}: {type(error).__name__}: {error}: {hint}'
        ) from error


def _shorten(messages, fits) -> tuple[dict, ...]:
    """Drops the first messages of a prompt until it fits; () if it never does.

    system, user 1, assistant 1, user 2  ->  system, user 2
    """
    spoken = [place for place, m in enumerate(messages) if m['role'] != 'system']
    system = messages[: spoken[0]] if spoken else ()
    users = [place for place in spoken if messages[place]['role'] == 'user']
    end_from = lambda place: (*system, *messages[place:])
    # `fits` encodes the messages, so a binary search calls it less often.
    first = bisect_left(users, True, key=lambda place: fits(end_from(place)))
    return end_from(users[first]) if first < len(users) else ()
