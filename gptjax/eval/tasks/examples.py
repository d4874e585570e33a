"""Examples of a task: prompts with reference answers, or with choices.

By default they are from conversations that the model was not trained on: the prompt is
a conversation up to some turn, the reference is the turn that a person wrote next. Or
they are from a user's file of JSON Lines, of one of these two forms (`id` and `stop`
may be left out):

    {"prompt": "Q: …\\nA:", "references": [" Paris", " It is Paris"], "stop": ["\\n"]}
    {"prompt": "The sky is", "choices": [" blue", " green"], "answer": 0}

A prompt that is a text is given as it is, and a choice follows it as it is: the space
between them is the file's to write. One that is a list of messages (`role` and
`content`) goes through the run's chat template.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.core.files import File, read_json_lines
from gptjax.core.hashing import hash_integer
from gptjax.data.chat_template import ROLES, TURN_END


class Example(NamedTuple):
    """One question."""

    id: str
    prompt: str | list[dict]  # or messages, dicts of `role` and `content`
    references: tuple[str, ...] = ()  # right answers, of a generation
    choices: tuple[str, ...] = ()
    answer: int = 0  # the number of the right choice
    stop: tuple[str, ...] | None = None  # a reply's end; None: the template's

    def identity(self) -> dict[str, str]:
        """Its id, and SHA-256 of its prompt and of all that decides its score."""
        return dict(
            id=self.id,
            prompt_sha256=storage.fingerprint(self.prompt),
            item_sha256=storage.fingerprint(list(self[1:])),
        )


# ---- from conversations


def reply_examples(documents: Sequence[dict], count: int, seed: int) -> list[Example]:
    """One example of each of `count` conversations: what does a person say next?

    The conversation is cut after a turn of whoever spoke first, drawn by (seed, its
    id), so an example does not depend on the other documents. Which ones are taken is
    drawn the same way; 0: all. In a document's `text` an empty line stands between
    turns.
    """
    examples = []
    for document in sorted(documents, key=lambda d: hash_integer(seed, d['id'])):
        turns = [turn for turn in document['text'].split(TURN_END) if turn.strip()]
        if len(turns) < 2:
            continue
        cuts = range(1, len(turns), 2)
        cut = cuts[hash_integer(seed, 'cut', document['id']) % len(cuts)]
        prompt = [
            dict(role=ROLES[1 + number % 2], content=turn)
            for number, turn in enumerate(turns[:cut])
        ]
        examples.append(Example(document['id'], prompt, references=(turns[cut],)))
        if len(examples) == count:
            break
    if not examples:
        raise UserError(
            'the validation split has no text of two turns (parts between empty '
            'lines): use --tasks=perplexity, or a file of your own'
        )
    return examples


def choice_examples(
    reply_examples: Sequence[Example], num_choices: int, seed: int
) -> list[Example]:
    """The same prompts, the true reply among true replies of other conversations."""
    replies = {example.references[0] for example in reply_examples}
    examples = []
    for example in reply_examples:
        (truth,) = example.references
        others = sorted(replies - {truth})
        if len(others) < num_choices - 1:
            raise UserError(
                f'eval.choices={num_choices}: there are {len(replies)} different '
                f'replies: use a smaller number, or more eval.conversations'
            )
        random = np.random.default_rng(
            [seed, hash_integer(seed, 'choices', example.id)]
        )
        drawn = random.choice(len(others), num_choices - 1, replace=False)
        answer = int(random.integers(num_choices))
        choices = [others[number] for number in drawn]
        choices.insert(answer, truth)
        examples.append(
            example._replace(references=(), choices=(*choices,), answer=answer)
        )
    return examples


def shuffle_references(examples: Sequence[Example], seed: int) -> list[str]:
    """For each example a reference of another: what knowing nothing gives."""
    if len(examples) == 1:
        return ['']
    random = np.random.default_rng(seed)
    order = random.permutation(len(examples))
    shuffled = [''] * len(examples)
    for target, source in zip(order, np.roll(order, 1), strict=True):
        shuffled[target] = examples[source].references[0]
    return shuffled


# ---- from a file


def read_example_file(path: Path) -> list[Example]:
    """The examples of a JSON Lines file, all of one form."""
    examples, forms, seen = [], {}, {}
    file = File(str(path), path.name)
    for number, where, value in read_json_lines(file, '--tasks', '{"prompt": …}'):
        try:
            example = _parse_example(value, f'{path.name}:{number}')
        except ValueError as error:
            raise UserError(f'{where}: {error}') from error
        forms.setdefault('choices' if example.choices else 'references', number)
        if len(forms) > 1:
            raise UserError(
                f'{where}: has {[*forms][1]!r}, and line '
                f'{[*forms.values()][0]} has {[*forms][0]!r}: use one form in a file'
            )
        if example.id in seen:
            raise UserError(
                f'{where}: the id {example.id!r} is that '
                f'of line {seen[example.id]} too: give each its own, or none'
            )
        seen[example.id] = number
        examples.append(example)
    if not examples:
        raise UserError(f'--tasks={path}: the file is empty: write one example a line')
    return examples


def _parse_example(value: dict, name: str) -> Example:
    """One line; ValueError with what is wrong and how to mend it."""
    if 'prompt' not in value:
        raise ValueError('has no "prompt": add one')
    prompt = _checked_prompt(value['prompt'])
    stop = value.get('stop')
    if stop is not None and not _are_texts(stop):
        raise ValueError('"stop" is no list of texts: use ["\\n"]')
    common = dict(
        id=str(value.get('id', name)),
        prompt=prompt,
        stop=None if stop is None else tuple(stop),
    )
    if ('references' in value) == ('choices' in value):
        raise ValueError('needs either "references" or "choices" and "answer"')
    if 'references' in value:
        if not _are_texts(value['references']):
            raise ValueError('"references" is no list of texts: use ["…"]')
        return Example(**common, references=tuple(value['references']))
    choices, answer = value['choices'], value.get('answer')
    if not _are_texts(choices) or len(choices) < 2:
        raise ValueError('"choices" is no list of two texts or more')
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ValueError(
            f'"answer" is {json.dumps(answer)}: use the place of the right choice, '
            f'0 to {len(choices) - 1}'
        )
    return Example(**common, choices=tuple(choices), answer=answer)


def _checked_prompt(prompt):
    if isinstance(prompt, str):
        return prompt
    messages = prompt if isinstance(prompt, list) else []
    if not messages or not all(
        isinstance(message, dict)
        and set(message) == {'role', 'content'}
        and message['role'] in ROLES
        and isinstance(message['content'], str)
        for message in messages
    ):
        raise ValueError(
            '"prompt" is neither a text nor a list of messages: use {"role": "user", '
            f'"content": "…"}}, roles {", ".join(ROLES)}'
        )
    return prompt


def _are_texts(value) -> bool:
    """Whether it is a list of strings, and not empty."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(text, str) and text for text in value)
    )
