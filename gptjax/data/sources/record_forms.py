"""Turns records of the forms that the Hub has into conversations of messages.

| form                     | what a record has                                         |
|--------------------------|-----------------------------------------------------------|
| messages                 | `messages` of `role` and `content`                        |
| conversations            | `conversations` of `from` and `value` (ShareGPT)          |
| instruction/input/output | these texts (Alpaca); `input` is optional                 |
| prompt/completion        | each is a text or messages; only the completion is learned|

A message of either list may have `role` and `content`, or `from` and `value`. In the
second and the third form, `system` is the first message. `columns` of the config gives
fields other names, as ('instruction=question', 'output=answer').
"""

import re
from collections.abc import Sequence

from gptjax.core.console import UserError
from gptjax.data.sources.records import MESSAGES, field_names, record_messages

# The fields that a record of each form needs.
FORMS = {
    'messages': ('messages',),
    'conversations': ('conversations',),
    'instruction/input/output': ('instruction', 'output'),
    'prompt/completion': ('prompt', 'completion'),
}
CHAT_FIELDS = (
    *('messages', 'conversations', 'instruction', 'input', 'output', 'system'),
    *('prompt', 'completion'),
)
# What ShareGPT calls the speakers.
ROLES = dict(human='user', gpt='assistant', chatgpt='assistant', bot='assistant')


def rename_columns(
    record: dict, columns: Sequence[str], known: Sequence[str], location: str
) -> dict:
    """The record with the names that `columns` says, and no others of `known`.

    Args:
        columns: as ('prompt=question', 'completion=answer').
        known: all names on the left side. If there are `columns`, a name that they do
            not give is left out, so that a config chooses among several forms.
    """
    if not columns:
        return record
    named = dict(pair.split('=', 1) for pair in columns if '=' in pair)
    if len(named) != len(columns) or not named.keys() <= {*known}:
        raise UserError(
            f'{location}: columns={list(columns)}: write OURS=YOURS, where OURS is one '
            f'of {", ".join(known)}'
        )
    for ours, theirs in named.items():
        if theirs not in record and ours not in OPTIONAL:
            raise UserError(
                f'{location} has no field {theirs!r}, which columns calls {ours!r}, it '
                f'has {field_names(record)}: name one of these'
            )
    left = {n: v for n, v in record.items() if n not in {*known, *named.values()}}
    return left | {ours: record.get(theirs) for ours, theirs in named.items()}


OPTIONAL = ('input', 'system', 'margin', 'scores')  # a null column of a table is absent


def read_conversation(
    record: dict,
    columns: Sequence[str],
    location: str,
    example: str = MESSAGES,
    with_tools: bool = False,
) -> tuple[str, list[dict]]:
    """(form, messages as `records.record_messages` returns them) of a record.

    Raises UserError if the record has the fields of no form, or of several.
    """
    has_text = record.get('text') is not None and not columns
    record = rename_columns(record, columns, CHAT_FIELDS, location)
    form = find_form(record, location, has_text)
    if form != 'messages':
        for name in ('history', 'label'):
            if record.get(name) not in (None, '', []):
                raise UserError(
                    f'{location} has the field "{name}", which a conversation cannot '
                    'say: write the earlier turns as messages, labels are for '
                    'preference.path with preference.loss=kto; or leave the field out'
                )
        rest = {n: v for n, v in record.items() if n not in CHAT_FIELDS}
        record = rest | dict(messages=_MESSAGES_OF[form](record, location))
    elif 'messages' in record:
        record = record | dict(messages=_with_roles(record['messages']))
    return form, record_messages(record, 'messages', location, example, with_tools)


def find_form(record: dict, location: str, has_text: bool = False) -> str:
    """The form whose fields the record has; 'messages' if it has none."""
    found = [
        form
        for form, names in FORMS.items()
        if all(record.get(name) is not None for name in names)
    ]
    fields = [FORMS[form][-1] for form in found] + ['text'] * (has_text and bool(found))
    if len(fields) > 1:
        first = FORMS[found[0]]
        raise UserError(
            f'{location} has both {" and ".join(map(repr, fields))}: say which one is '
            f'meant by columns={[f"{name}={name}" for name in first]} of the source, '
            'or leave the other out'
        )
    return found[0] if found else 'messages'


def as_messages(value, role: str, name: str, location: str) -> list[dict]:
    """A text as one message of `role`; a list of messages with the names of roles."""
    if isinstance(value, str):
        if re.match(r'\s*\[\s*\{\s*"(role|from)"', value):
            raise UserError(
                f'{location}: "{name}" is messages, but a text: write the list without '
                'quotes around it'
            )
        return [dict(role=role, content=value)]
    if not isinstance(value, list) or not value:
        raise UserError(
            f'{location}: "{name}" is neither a text nor a list of messages: write one '
            'of these'
        )
    return _with_roles(value)


def _with_roles(value):
    """Messages of `from` and `value` get `role` and `content`; others stay."""
    if not isinstance(value, list):
        return value
    return [_with_role(message) for message in value]


def _with_role(message):
    if not isinstance(message, dict) or message.get('role') is not None:
        return message
    speaker = message.get('from')
    if not isinstance(speaker, str):
        return message
    rest = {n: v for n, v in message.items() if n not in ('from', 'value', 'role')}
    role = ROLES.get(speaker, speaker)
    return rest | dict(role=role, content=message.get('value'))


def _with_system(record, messages):
    system = record.get('system')
    return [dict(role='system', content=system), *messages] if system else messages


def _read_conversations(record, location):
    messages = as_messages(record['conversations'], 'user', 'conversations', location)
    return _with_system(record, messages)


def _read_instruction(record, location):
    for name in ('instruction', 'input', 'output'):
        if not isinstance(record.get(name) or '', str):
            raise UserError(f'{location}: "{name}" is no text: write a text')
    parts = record['instruction'], record.get('input')
    question = dict(role='user', content='\n\n'.join(filter(None, parts)))
    reply = dict(role='assistant', content=record['output'])
    return _with_system(record, [question, reply])


def _read_prompt(record, location):
    """Replies within the prompt are context."""
    prompt = as_messages(record['prompt'], 'user', 'prompt', location)
    completion = as_messages(record['completion'], 'assistant', 'completion', location)
    return [*map(without_loss, prompt), *completion]


def without_loss(message):
    reply = isinstance(message, dict) and message.get('role') == 'assistant'
    return dict(message, train=False) if reply else message


_MESSAGES_OF = {
    'conversations': _read_conversations,
    'instruction/input/output': _read_instruction,
    'prompt/completion': _read_prompt,
}
