"""Problems that a reply can be judged on: where they come from, and who holds which.

A task is procedural (any dataset of reasoning-gym, whose verifier judges), a file of
problems, or a folder of conversations (prompts alone). Each problem is there once, and
belongs to one of three parts by a hash of its content alone, so the parts share none;
those of a folder are as it holds them. The parts are the same for every seed; which
training problem stands at an index is a function of (seed, index).
"""

import hashlib
import itertools
import json
import warnings
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from gptjax import files
from gptjax.data import stage
from gptjax.errors import UserError
from gptjax.eval import conversations

PARTS = ('train', 'validation', 'held_out')
CONVERSATIONS = ('train.jsonl', 'validation.jsonl')  # in a folder of them
TRIES = 10_000  # draws in a row without a new problem: there are no more


class Item(NamedTuple):
    """One problem.

    id: names its content: equal problems have equal ids.
    messages: the prompt, dicts of `role` and `content`.
    answer: a right reply; '' where none is known.
    meta: what a verifier or a reward function wants to know besides.
    """

    id: str
    messages: tuple[dict, ...]
    answer: str = ''
    meta: Any = None


class Task(NamedTuple):
    """Problems and their judge.

    train: from an index to a training problem: all of them in a drawn order, then
        all again in another.
    demonstrations: from n to the first n training problems, to learn the answers of.
    validation: from n to the first n problems to choose a checkpoint by.
    held_out: from n to the first n problems to report on.
    score: from an item and a reply to the verifier's score, 1.0 where it is right;
        None where there is no verifier.
    """

    train: Callable[[int], Item]
    demonstrations: Callable[[int], list[Item]]
    validation: Callable[[int], list[Item]]
    held_out: Callable[[int], list[Item]]
    score: Callable[[Item, str], float] | None


def make_task(section: ConfigDict, seed: int, fits=lambda messages: True) -> Task:
    """The task of a config's section `task`.

    Args:
        section: the task section.
        seed: of the order of training problems.
        fits: whether a prompt leaves room for a reply; problems that do not fit are
            left out, conversations shortened.

    Raises:
        UserError: there is no such dataset, its options make no sense, or the file
            does.
    """
    fraction = section.held_out_fraction
    if not 0 < fraction < 0.5:
        raise UserError(
            f'task.held_out_fraction={fraction}: use a share above 0 and below 0.5: '
            'validation takes as much again'
        )
    path = Path(section.path).expanduser()
    if section.path and path.is_dir():
        first, score = _folder_task(path, fits), None
    elif section.path:
        first, score = _file_task(section, fits)
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
        return files.fingerprint([section.name, section.options.to_dict()])
    path = Path(section.path).expanduser()
    its = [path / name for name in CONVERSATIONS] if path.is_dir() else [path]
    try:
        return files.fingerprint([files.sha256_of_file(file) for file in its])
    except OSError as error:
        raise UserError(
            f'task.path={path}: {error}: name a file of problems or a folder of '
            'conversations'
        ) from error


def part_of(item_id: str, fraction: float) -> str:
    """'held_out', 'validation' or 'train', by the problem's content.

    Not by the hash that splits documents: demonstrations are split by that one too,
    and would all be on one side of it.
    """
    place = int.from_bytes(_hash('part of the task', item_id)[:8], 'big') / 2**64
    if place < fraction:
        return 'held_out'
    return 'validation' if place < 2 * fraction else 'train'


def write_chats(items: Sequence[Item], path: Path) -> None:
    """Problems with their answers as a file of `messages`, one conversation a line.

    Raises:
        UserError: a problem without an answer.
    """
    lines = []
    for item in items:
        if not item.answer:
            raise UserError(f'the problem {item.id} has no answer to learn from')
        reply = dict(role='assistant', content=item.answer)
        chat = dict(id=item.id, messages=[*item.messages, reply])
        lines.append(json.dumps(chat, ensure_ascii=False))
    files.write_text(path, '\n'.join(lines) + '\n')


def write_task(config: ConfigDict, workdir: Path) -> dict:
    """Makes RUN/task, conversations whose last message is the right answer.

        RUN/task/train.jsonl, validation.jsonl, held_out.jsonl

    The first has the demonstrations, which are some of the training problems.

    Returns:
        The manifest, with the number of `problems` of each file.
    """
    section = config.task
    settings = {f'task.{name}': value for name, value in section.to_dict().items()}
    settings['problems'] = problems_fingerprint(section)
    names = [f'{part}.jsonl' for part in PARTS]
    manifest = stage.finished(workdir / 'task', settings, needs=names)
    if manifest is not None:
        return manifest
    task = make_task(section, config.seed)
    parts = dict(
        train=task.demonstrations(section.demonstrations),
        validation=task.validation(section.validation),
        held_out=task.held_out(section.held_out),
    )
    with stage.draft(workdir / 'task') as folder:
        for name, items in parts.items():
            write_chats(items, folder / f'{name}.jsonl')
        manifest = dict(
            inputs=files.fingerprint(settings),
            settings=settings,
            problems={name: len(items) for name, items in parts.items()},
            sha256={
                name: files.sha256_of_file(folder / f'{name}.jsonl') for name in parts
            },
        )
        files.write_json(folder / stage.MANIFEST, manifest)
    return manifest


# ---- reasoning-gym


def _gym_task(section, fits):
    """(`first(part, n)`, score) of a reasoning-gym dataset.

    Its own items are functions of the sum of seed and index, so that neighbouring
    seeds share all but one: here the index is a hash.
    """
    dataset = gym_dataset(section.name, section.options.to_dict())

    def problem(part, place):
        index = int.from_bytes(_hash(part, place)[:6], 'big')
        entry = dataset[index]
        message = dict(role='user', content=entry['question'])
        return Item(
            id=files.fingerprint([section.name, entry['question']])[:16],
            messages=(message,),
            answer=str(entry['answer']),
            meta=entry,
        )

    def first(part, n):
        found, since = {}, 0
        for place in itertools.count():
            if len(found) == n or since == TRIES:
                break
            item = problem(part, place)
            since += 1
            its = part_of(item.id, section.held_out_fraction)
            if its == part and item.id not in found and fits(item.messages):
                found[item.id], since = item, 0
        if not found:
            raise UserError(
                f'task.name={section.name}: no {part} problem fits the context in '
                f'{TRIES:,} draws: change task.options or data.context, or lower '
                'max_tokens of replies'
            )
        return list(found.values())

    def score(item, reply):
        return float(dataset.score_answer(reply, item.meta))

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


# ---- a file


def _file_task(section, fits):
    """(`first(part, n)`, score) of a JSON Lines file, as `read_items` has it."""
    path = Path(section.path).expanduser()
    parts = {part: [] for part in PARTS}
    for item in read_items(path):
        if fits(item.messages):
            parts[part_of(item.id, section.held_out_fraction)].append(item)
    for part, items in parts.items():
        if not items:
            raise UserError(
                f'task.path={path}: no problem that fits the context is in the part '
                f'{part}: give more, or change task.held_out_fraction'
            )
    answers = all(item.answer for items in parts.values() for item in items)
    return lambda part, n: parts[part][:n], _equals if answers else None


def _equals(item, reply):
    return float(reply.strip() == item.answer.strip())


def read_items(path: Path) -> list[Item]:
    """The problems of a JSON Lines file, each content once.

    A line is `{"prompt": "…", "answer": "…"}`, or has `messages` in place of
    `prompt`; the answer may be left out. Where the messages end with the assistant's,
    that is the answer.

    Raises:
        UserError: the file or a line makes no sense, by its number.
    """
    try:
        lines = path.read_text(encoding='utf-8').split('\n')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'task.path={path}: {error}: give a JSON Lines file') from error
    items = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                item = _read_item(line)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(
                    f'task.path={path}: line {number}: {error}: write {{"prompt": '
                    '"…", "answer": "…"}, or "messages" for "prompt"'
                ) from error
            items[item.id] = item
    if not items:
        raise UserError(f'task.path={path}: the file is empty: give a line a problem')
    return list(items.values())


def _read_item(line):
    value = json.loads(line)
    if not isinstance(value, dict) or not {'prompt', 'messages'} & value.keys():
        raise ValueError('has neither "prompt" nor "messages"')
    answer = value.get('answer', '')
    messages = value.get('messages')
    if messages is None:
        messages = [dict(role='user', content=value['prompt'])]
    messages = [dict(role=m['role'], content=m['content']) for m in messages]
    if messages and messages[-1]['role'] == 'assistant':
        *messages, last = messages
        answer = answer or last['content']
    for message in messages:
        if message['role'] not in ('system', 'user', 'assistant'):
            raise ValueError(
                f'role {message["role"]!r} (use system, user or assistant)'
            )
        if not isinstance(message['content'], str):
            raise ValueError('"content" is no text')
    if not messages or not isinstance(answer, str):
        raise ValueError('has no message to reply to, or an answer that is no text')
    return Item(files.fingerprint(messages)[:16], tuple(messages), answer, value)


# ---- a folder of conversations


def _folder_task(folder, fits):
    """`first(part, n)` of what stood before replies of the assistant's.

    One reply of each conversation is chosen, as evaluation chooses it. What does not
    fit loses its oldest messages. Validation and held-out problems halve
    validation.jsonl between them, by conversation: what fits may differ.
    """
    parts, seen = {part: [] for part in PARTS}, set()
    for name in reversed(CONVERSATIONS):  # what is held out is not trained on
        for its in _replies(folder / name):
            messages = _newest(its.prompt, fits)
            item = Item(files.fingerprint(messages)[:16], messages)
            if messages and item.id not in seen:
                conversation = its.id.split('@')[0]
                part = 'train' if name == 'train.jsonl' else part_of(conversation, 0.5)
                parts[part].append(item)
                seen.add(item.id)
    for part, items in parts.items():
        if not items:
            raise UserError(
                f'task.path={folder}: no conversation that fits the context is in the '
                f'part {part}: give more, or lower max_tokens of replies'
            )
    return lambda part, n: parts[part][:n]


def _replies(path):
    try:
        with open(path, encoding='utf-8') as lines:
            views = [json.loads(line) for line in lines if line.strip()]
        return conversations.reply_items(views, 0, 0)
    except UserError as error:
        raise UserError(
            f'task.path={path}: no conversation has a reply to a user: name a folder '
            'that has, as RUN/dialogue of the stage sft'
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'task.path={path}: {type(error).__name__}: {error}: name a file of '
            'problems, or a folder that the stage sft made, RUN/dialogue'
        ) from error


def _newest(messages, fits):
    """The longest end that begins with a user's message and fits, or ()."""
    said = [place for place, m in enumerate(messages) if m['role'] != 'system']
    head = messages[: said[0]] if said else ()
    users = [place for place in said if messages[place]['role'] == 'user']
    end = lambda place: (*head, *messages[place:])
    # A shorter end has fewer tokens: as few are counted as it takes.
    at = bisect_left(users, True, key=lambda place: fits(end(place)))
    return end(users[at]) if at < len(users) else ()


def _hash(*words) -> bytes:
    return hashlib.sha256('\0'.join(map(str, words)).encode()).digest()
