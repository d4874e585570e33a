"""Reads users' preferences: JSON Lines with a prompt, a better and a worse reply.

    {"prompt": [{"role": "user", "content": "Hi!"}], "chosen": "Hello!",
     "rejected": "What?"}

The reward model and the stages that learn directly from preferences use this reader.
"""

from typing import NamedTuple

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.core.files import JSON_LINES, list_files, read_json_lines
from gptjax.data.chat_template import check_role
from gptjax.data.sources.file_source import read_message
from gptjax.data.sources.records import replace_surrogates

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
            identity, prompt = f'{file.name}#{number}', _read_prompt(value, location)
            replies = (replace_surrogates(value[n]) for n in ('chosen', 'rejected'))
            preferences.append(Preference(identity, prompt, *replies))
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


def _read_prompt(value: dict, location: str) -> list[dict]:
    prompt = value.get('prompt')
    if not isinstance(prompt, list) or not prompt:
        raise UserError(
            f'{location}: has no "prompt" that is a list of messages: write {FORM}'
        )
    messages = []
    for number, message in enumerate(prompt):
        place = f'{location}: prompt[{number}]'
        message = read_message(message, place, FORM)
        check_role(message['role'], place)
        content = replace_surrogates(message['content'])
        messages.append(dict(role=message['role'], content=content))
    if messages[-1]['role'] == 'assistant':
        raise UserError(
            f'{location}: the prompt ends with a message of the assistant, and so do '
            'the replies: end the prompt with a message of the user'
        )
    return messages
