"""Examples of a task: prompts with reference replies, or with choices.

By default examples are made from held-out conversations: the prompt is the beginning of
a conversation, and the reference is the turn that a person wrote next. Examples can
also come from a user's JSON Lines file of one of two forms (`id` and `stop` are
optional):

    {"prompt": "Q: …\\nA:", "references": [" Paris", " It is Paris"], "stop": ["\\n"]}
    {"prompt": "The sky is", "choices": [" blue", " green"], "answer": 0}

A text prompt is used as it is, and a choice is appended as it is, so the file has to
contain the space between them. A prompt that is a list of messages (`role` and
`content`) goes through the run's chat template.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.core.files import File, read_json_lines, replace_surrogates
from gptjax.core.hashing import hash_integer
from gptjax.data.chat_template import ROLES, TURN_END
from gptjax.data.sources.records import record_messages

FORM = '{"prompt": [{"role": "user", "content": "…"}], "references": ["…"]}'


class Example(NamedTuple):
    """A prompt with references or choices."""

    id: str
    prompt: str | list[dict]  # a text, or messages with `role` and `content`
    references: tuple[str, ...] = ()  # right replies, for generation
    choices: tuple[str, ...] = ()
    answer: int = 0  # the index of the right choice
    stop: tuple[str, ...] | None = None  # ends of a reply; None: the template's

    def identity(self) -> dict[str, str]:
        """The id, and SHA-256 of the prompt and of all that affects the score."""
        return dict(
            id=self.id,
            prompt_sha256=storage.fingerprint(self.prompt),
            item_sha256=storage.fingerprint(list(self[1:])),
        )


# ---- from conversations


def reply_examples(documents: Sequence[dict], count: int, seed: int) -> list[Example]:
    """One example from each of `count` conversations (0: all): what is said next?

    A document with turns `A B C D`, between empty lines, gives `A → B` or `A B C → D`.
    Which one, and which conversations are used, depends on (seed, id) alone, so an
    example does not depend on the other documents.
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
            'the validation split has no text with two turns (parts between empty '
            'lines): use --tasks=perplexity or a file of your own'
        )
    return examples


def choice_examples(
    reply_examples: Sequence[Example], num_choices: int, seed: int
) -> list[Example]:
    """The same prompts; choices are the reply and replies of other conversations."""
    replies = {example.references[0] for example in reply_examples}
    examples = []
    for example in reply_examples:
        (truth,) = example.references
        others = sorted(replies - {truth})
        if len(others) < num_choices - 1:
            smaller = 'a smaller number, or ' if others else '--tasks=reply, or '
            raise UserError(
                f'eval.choices={num_choices} is more than the {len(replies)} different '
                f'replies: use {smaller}more eval.conversations'
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
    """A reference of another example for each example, as a baseline without skill."""
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
    """The examples of a JSON Lines file; all have the same form."""
    examples, places, forms = [], [], {}
    file, name = File(str(path), path.name), replace_surrogates(path.name)
    for number, where, value in read_json_lines(file, '--tasks', '{"prompt": …}'):
        try:
            example = _parse_example(value, f'{name}:{number}', where)
        except ValueError as error:
            raise UserError(f'{where}: {error}') from error
        forms.setdefault('choices' if example.choices else 'references', number)
        if len(forms) > 1:
            raise UserError(
                f'{where} has {[*forms][1]!r}, and line '
                f'{[*forms.values()][0]} has {[*forms][0]!r}: use one form in a file'
            )
        examples.append(example)
        places.append(f'{name}:{number}')
    if not examples:
        raise UserError(f'--tasks={path}: the file is empty: write one example a line')
    if len({example.id for example in examples}) < len(examples):
        print(f'--tasks={path}: its ids repeat, so the lines are used as ids')
        pairs = zip(examples, places, strict=True)
        examples = [example._replace(id=place) for example, place in pairs]
    return examples


def _parse_example(value: dict, name: str, where: str) -> Example:
    """The example of one line. Raises ValueError with the reason and the fix."""
    if 'prompt' not in value:
        raise ValueError('"prompt" is missing: add one')
    prompt, stop = value['prompt'], value.get('stop')
    if not isinstance(prompt, str):
        prompt = record_messages(value, 'prompt', where, FORM)
    if stop is not None and not _are_texts(stop):
        raise ValueError('"stop" is not a list of strings: use ["\\n"]')
    common = dict(
        id=name if value.get('id') is None else str(value['id']),
        prompt=prompt,
        stop=None if stop is None else tuple(stop),
    )
    if ('references' in value) == ('choices' in value):
        raise ValueError('give either "references", or "choices" and "answer"')
    if 'references' in value:
        if not _are_texts(value['references']):
            raise ValueError('"references" is not a list of strings: use ["…"]')
        return Example(**common, references=tuple(value['references']))
    choices, answer = value['choices'], value.get('answer')
    if not _are_texts(choices) or len(choices) < 2:
        raise ValueError('"choices" is not a list of two or more strings')
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ValueError(
            f'"answer" is {json.dumps(answer)}: use the index of the right choice, '
            f'0 to {len(choices) - 1}'
        )
    return Example(**common, choices=tuple(choices), answer=answer)


def _are_texts(value) -> bool:
    is_list = bool(value) and isinstance(value, list)
    return is_list and all(isinstance(text, str) and text for text in value)
