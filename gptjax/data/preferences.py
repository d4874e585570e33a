"""Users' preferences: JSON Lines, each a prompt with a better and a worse reply.

    {"prompt": [{"role": "user", "content": "Hi!"}], "chosen": "Hello!",
     "rejected": "What?"}

The reward model and the stages that learn from preferences directly read them here.
"""

from typing import NamedTuple

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.core.files import JSON_LINES, list_files, read_json_lines
from gptjax.data.chat_template import ROLES

FORM = '{"prompt": [{"role": "user", "content": "…"}], "chosen": "…", "rejected": "…"}'


class Preference(NamedTuple):
    """Two replies to one prompt, of which `chosen` is the better."""

    id: str  # 'FILE#LINE'
    prompt: list[dict]  # messages, of which the last is not the assistant's
    chosen: str
    rejected: str

    def split_key(self) -> str:
        """What decides the split: pairs of one prompt fall on the same side."""
        return storage.fingerprint(self.prompt)

    def conversations(self) -> tuple[list[dict], list[dict]]:
        """The prompt's messages with the chosen reply, and with the rejected one."""
        end = lambda text: [*self.prompt, dict(role='assistant', content=text)]
        return end(self.chosen), end(self.rejected)


def read_preferences(path: str, field: str) -> tuple[list[Preference], dict]:
    """All preferences of a file, a folder or a glob, local or on `gs://`, or `.gz`.

    Returns:
        (the preferences in order; counts: `lines`, and `equal`, those left out
        because both replies are the same).
    """
    every = []
    for file in list_files(path, JSON_LINES, field):
        for number, location, value in read_json_lines(file, field, FORM):
            try:
                every.append(_preference(f'{file.name}#{number}', value))
            except ValueError as error:
                raise UserError(f'{location}: {error}') from error
    preferences = [one for one in every if one.chosen != one.rejected]
    counts = dict(lines=len(every), equal=len(every) - len(preferences))
    if not every:
        raise UserError(f'{field}={path}: no preference in it: write lines of {FORM}')
    if not preferences:
        raise UserError(
            f'{field}={path}: "chosen" and "rejected" are equal in all '
            f'{counts["lines"]} lines: there is nothing to prefer; give replies that '
            'differ'
        )
    return preferences, counts


def _preference(identity: str, value: dict) -> Preference:
    """One line; ValueError with what is wrong and how to mend it."""
    for name in ('prompt', 'chosen', 'rejected'):
        if name not in value:
            raise ValueError(f'has no "{name}": write {FORM}')
    for name in ('chosen', 'rejected'):
        if not isinstance(value[name], str):
            raise ValueError(f'"{name}" is no text: write {FORM}')
    return Preference(
        identity, _prompt(value['prompt']), value['chosen'], value['rejected']
    )


def _prompt(prompt) -> list[dict]:
    if not isinstance(prompt, list) or not prompt:
        raise ValueError(f'"prompt" is no list of messages: write {FORM}')
    for number, message in enumerate(prompt):
        if not isinstance(message, dict) or not (
            isinstance(message.get('role'), str)
            and isinstance(message.get('content'), str)
        ):
            raise ValueError(
                f'prompt[{number}] has no "role" and "content" that are texts: write '
                f'{FORM}'
            )
        if message['role'] not in ROLES:
            raise ValueError(
                f'prompt[{number}].role={message["role"]!r}: use {", ".join(ROLES)}'
            )
    if prompt[-1]['role'] == 'assistant':
        raise ValueError(
            'the prompt ends with an assistant’s message, and so do the replies: end '
            'it with the user’s'
        )
    return [dict(role=m['role'], content=m['content']) for m in prompt]
