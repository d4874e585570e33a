"""Reads users' preferences: JSON Lines with a prompt, a better and a worse reply.

    {"prompt": [{"role": "user", "content": "Hi!"}], "chosen": "Hello!",
     "rejected": "What?"}

The reward model and the stages that learn directly from preferences use this reader.
"""

from typing import NamedTuple

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.core.files import (
    JSON_LINES,
    list_files,
    read_json_lines,
    replace_surrogates,
)
from gptjax.data.sources.records import record_messages

FORM = '{"prompt": [{"role": "user", "content": "…"}], "chosen": "…", "rejected": "…"}'


class Preference(NamedTuple):
    """A prompt and two replies, of which `chosen` is the better one."""

    id: str  # 'FILE#LINE'
    prompt: list[dict]  # messages; the last one is not the assistant's
    chosen: str
    rejected: str

    def split_key(self) -> str:
        """A hash of the prompt: preferences of one prompt are in the same split."""
        return storage.fingerprint(self.prompt)

    def conversations(self) -> tuple[list[dict], list[dict]]:
        """The prompt's messages with the chosen reply, and with the rejected one."""
        end = lambda text: [*self.prompt, dict(role='assistant', content=text)]
        return end(self.chosen), end(self.rejected)


def read_preferences(path: str, field: str) -> tuple[list[Preference], dict]:
    """Reads all preferences of a file, a folder or a glob, local or on `gs://`.

    Returns:
        (preferences in order, counts). The counts are `lines`, and `equal`: lines left
        out because both replies are the same.
    """
    preferences = []
    for file in list_files(path, JSON_LINES, field):
        for number, location, value in read_json_lines(file, field, FORM):
            for name in ('chosen', 'rejected'):
                if not isinstance(value.get(name), str):
                    raise UserError(
                        f'{location}: has no "{name}" that is a string: write {FORM}'
                    )
            if value.get('margin'):
                raise UserError(
                    f'{location} has the field "margin", which no loss reads: leave it '
                    'out, or use one margin for all lines: reward.margin, or '
                    'preference.margin of simpo'
                )
            prompt = record_messages(value, 'prompt', location, FORM)
            if prompt[-1]['role'] == 'assistant':
                raise UserError(
                    f'{location}: the prompt ends with a message of the assistant, and '
                    'so do the replies: end the prompt with a message of the user'
                )
            identity = replace_surrogates(f'{file.name}#{number}')
            preferences.append(
                Preference(identity, prompt, value['chosen'], value['rejected'])
            )
    if not preferences:
        raise UserError(f'{field}={path}: has no preference: write lines of {FORM}')
    different = [one for one in preferences if one.chosen != one.rejected]
    num_lines = len(preferences)
    if not different:
        raise UserError(
            f'{field}={path}: "chosen" and "rejected" are equal in all {num_lines} '
            'lines: there is nothing to prefer; give replies that differ'
        )
    return different, dict(lines=num_lines, equal=num_lines - len(different))
