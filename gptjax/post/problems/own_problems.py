"""Problems of your own: a file of them, or the prompts of a folder of conversations.

What is left out, as it is there twice or does not fit, is counted in a line.
"""

from bisect import bisect_left
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.core.files import File, read_json_lines
from gptjax.data.conversations import conversation_of, one_reply_each
from gptjax.parallel.multihost import print_once
from gptjax.post.problems.problem import PARTS, Problem, part_of

FORM = '{"prompt": "…", "answer": "…"}'
CONVERSATIONS = ('train.jsonl', 'validation.jsonl')  # in a folder of them


# ---- a file


def file_task(section, fits):
    """(`first(part, n)`, score) of a JSON Lines file, as `read_problems` has it."""
    path = Path(section.path).expanduser()
    parts = {part: [] for part in PARTS}
    problems, equal = read_problems(path)
    for problem in problems:
        if fits(problem.messages):
            parts[part_of(problem.id, section.held_out_fraction)].append(problem)
    for part, its in parts.items():
        if not its:
            raise UserError(
                f'task.path={path}: no problem that fits the context is in the part '
                f'{part}: give more, or change task.held_out_fraction'
            )
    print_once(told(section, parts, len(problems), equal))
    answers = all(problem.answer for its in parts.values() for problem in its)
    return lambda part, n: parts[part][:n], _equals if answers else None


def told(section: ConfigDict, parts: dict, read: int, equal: int) -> str:
    """A line about problems, and those that are left out.

    Args:
        section: the task section.
        parts: of those that fit.
        read: problems that differ, whether they fit or not.
        equal: others, of the same content as one of them.
    """
    sizes = {part: len(problems) for part, problems in parts.items()}
    train = min(sizes['train'], section.problems)
    left_out = {
        'equal': equal,
        'too long': read - sum(sizes.values()),
        f'beyond task.problems={section.problems:,}': sizes['train'] - train,
    }
    return (
        f'problems: {train:,} to train on, {sizes["validation"]:,} to choose by, '
        f'{sizes["held_out"]:,} held out'
        + ''.join(f', {count:,} {why}' for why, count in left_out.items() if count)
    )


def _equals(problem, reply):
    return float(reply.strip() == problem.answer.strip())


def read_problems(path: Path) -> tuple[list[Problem], int]:
    """(the problems of a JSON Lines file, each once; lines that were equal to one).

    A line is `{"prompt": "…", "answer": "…"}`, or has `messages` in place of
    `prompt`; the answer may be left out. Where the messages end with the assistant's,
    that is the answer.

    Raises:
        UserError: the file or a line makes no sense, by its number, or two lines have
            one prompt and different answers.
    """
    problems, numbers, equal = {}, {}, 0
    file = File(str(path), path.name)
    for number, where, value in read_json_lines(file, 'task.path', FORM):
        try:
            problem = _parse_problem(value)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'{where}: {error}: write {FORM}, or "messages" for "prompt"'
            ) from error
        same = problems.setdefault(problem.id, problem)
        if same.answer != problem.answer:
            raise UserError(
                f'task.path={path}: lines {numbers[problem.id]} and {number} have '
                'one prompt and different answers: keep one of them'
            )
        equal += problem.id in numbers
        numbers.setdefault(problem.id, number)
    if not problems:
        raise UserError(f'task.path={path}: the file is empty: give a line a problem')
    return list(problems.values()), equal


def _parse_problem(value):
    if not {'prompt', 'messages'} & value.keys():
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
    return Problem(storage.fingerprint(messages)[:16], tuple(messages), answer, value)


# ---- a folder of conversations


def folder_task(section, fits):
    """`first(part, n)` of what stood before replies of the assistant's.

    One reply of each conversation is chosen, as evaluation chooses it. What does not
    fit loses its oldest messages. Validation and held-out problems halve
    validation.jsonl between them, by conversation: what fits may differ.
    """
    folder = Path(section.path).expanduser()
    parts, seen, equal, too_long = {part: [] for part in PARTS}, set(), 0, 0
    for name in reversed(CONVERSATIONS):  # what is held out is not trained on
        for view, prompt, _ in _replies(folder / name):
            messages = _newest(prompt, fits)
            problem = Problem(storage.fingerprint(messages)[:16], messages)
            equal += problem.id in seen
            too_long += not messages
            if messages and problem.id not in seen:
                conversation = conversation_of(view)
                part = 'train' if name == 'train.jsonl' else part_of(conversation, 0.5)
                parts[part].append(problem)
                seen.add(problem.id)
    for part, problems in parts.items():
        if not problems:
            raise UserError(
                f'task.path={folder}: no conversation that fits the context is in the '
                f'part {part}: give more, or lower max_tokens of replies'
            )
    print_once(told(section, parts, len(seen) + too_long, equal))
    return lambda part, n: parts[part][:n]


def _replies(path):
    file = File(str(path), path.name)
    try:
        views = [view for _, _, view in read_json_lines(file, 'task.path')]
    except UserError as error:
        raise UserError(
            f'{error}; task.path is a file of problems, or a folder that the stage sft '
            'made, RUN/dialogue'
        ) from error
    try:
        return one_reply_each(views, 0, 0)
    except UserError as error:
        raise UserError(
            f'task.path={path}: no conversation has a reply to a user: name a folder '
            'that has, as RUN/dialogue of the stage sft'
        ) from error
    except (KeyError, TypeError, AttributeError) as error:
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
