"""Reads users' preferences, from JSON Lines or tables: see `FORMS`.

    {"prompt": "Hi!", "chosen": "Hello!", "rejected": "What?"}
    {"chosen": [{"role": "user", "content": "Hi!"}, {"role": "assistant", …}],
     "rejected": [{"role": "user", "content": "Hi!"}, {"role": "assistant", …}]}
    {"prompt": "Hi!", "replies": ["Hello!", "Hi.", "What?"]}         the best one first
    {"prompt": "Hi!", "replies": ["What?", "Hello!"], "scores": [1, 4]}
    {"prompt": "Hi!", "completion": "Hello!", "label": true}          for KTO

A prompt, and a reply, is a text or a list of messages. The reward model and the stage
`dpo` use this reader.
"""

import math
import numbers
import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.core.files import replace_surrogates
from gptjax.data.sources.open_source import list_source_files
from gptjax.data.sources.record_files import read_records
from gptjax.data.sources.record_forms import as_messages, rename_columns
from gptjax.data.sources.records import field_names, record_messages

FORM = '{"prompt": [{"role": "user", "content": "…"}], "chosen": "…", "rejected": "…"}'
# The fields that a record of each form needs; the last two of the first form are the
# whole conversations if there is no prompt.
FORMS = {
    'chosen/rejected': ('chosen', 'rejected'),
    'replies': ('replies',),
    'prompt/completion/label': ('completion', 'label'),
}
FIELDS = ('prompt', 'margin', 'scores', *sum(FORMS.values(), ()))
TURN = re.compile(r'\n\n(Human|Assistant):[ ]?')  # of texts of HH
SPEAKERS = dict(Human='user', Assistant='assistant')


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
        chosen = add_reply(self.prompt, self.chosen)
        return chosen, add_reply(self.prompt, self.rejected)


class Ranking(NamedTuple):
    """A prompt and K replies with a value each; a higher value is better."""

    id: str
    prompt: list[dict]
    replies: list[str]
    values: list[float]
    margin: float = 0.0  # of two replies: how much the rewards have to differ

    def pairs(self) -> list[Preference]:
        """All pairs of replies whose values differ."""
        found = []
        for numbers_ in combinations(range(len(self.replies)), 2):
            worse, better = sorted(numbers_, key=lambda n: self.values[n])
            if self.values[better] > self.values[worse]:
                name = f'{self.id} {better}>{worse}'
                name = self.id if len(self.replies) == 2 else name
                replies = self.replies[better], self.replies[worse]
                found.append(Preference(name, self.prompt, *replies))
        return found


class Labelled(NamedTuple):
    """A prompt with one reply, and whether people liked it."""

    id: str
    prompt: list[dict]
    reply: str
    label: bool


def add_reply(prompt: Sequence[dict], text: str) -> list[dict]:
    return [*prompt, dict(role='assistant', content=text)]


def read_preferences(
    path: str, field: str, columns: Sequence[str] = ()
) -> tuple[list[Preference], dict]:
    """Reads all preferences of a file, a folder or a glob, local or on `gs://`.

    A ranking gives all its pairs. Labels and margins are refused.

    Returns:
        (preferences in order, counts). The counts are `lines`, and `equal`: lines left
        out because both replies are the same.
    """
    found, _ = read_replies(path, field, columns)
    return list_pairs(found, f'{field}={path}')


def list_pairs(
    found: Sequence['Ranking | Labelled'], where: str
) -> tuple[list[Preference], dict]:
    """`read_preferences` of what `read_replies` found; errors begin with `where`."""
    rankings, counts = list_rankings(found, where)
    for ranking in rankings:
        if ranking.margin:
            raise UserError(
                f'{where}: {ranking.id} has a "margin", which only the stage reward '
                'reads: leave it out, or use one margin for all lines, '
                'preference.margin of simpo'
            )
    return [pair for ranking in rankings for pair in ranking.pairs()], counts


def list_rankings(
    found: Sequence['Ranking | Labelled'], where: str
) -> tuple[list[Ranking], dict]:
    """The rankings of different replies, and counts as of `read_preferences`."""
    for one in found:
        if isinstance(one, Labelled):
            raise UserError(
                f'{where}: {one.id} has a label of one reply, and pairs are needed '
                'here: labels are for the stage dpo with preference.loss=kto'
            )
    different = [one for one in map(_without_repeats, found) if one.pairs()]
    if not different:
        raise UserError(
            f'{where}: "chosen" and "rejected" are equal in all {len(found)} lines: '
            'there is nothing to prefer; give replies that differ'
        )
    return different, dict(lines=len(found), equal=len(found) - len(different))


def read_replies(
    path: str, field: str, columns: Sequence[str] = ()
) -> tuple[list[Ranking | Labelled], Counter]:
    """Reads every record; returns (rankings or labelled replies, counts of forms)."""
    files = list_source_files('chat', path, field)
    found, forms = [], Counter()
    for name, location, record in read_records(field, files, lambda size: None, FORM):
        record = rename_columns(record, columns, FIELDS, location)
        form = _find_form(record, location)
        forms[form] += 1
        found.append(_READERS[form](replace_surrogates(name), record, location))
    if not found:
        raise UserError(f'{field}={path}: has no preference: write lines of {FORM}')
    if len({*map(type, found)}) > 1:
        raise UserError(
            f'{field}={path}: has labels of single replies and preferences: put them '
            'into two files, each for a run of its own'
        )
    return found, forms


def describe_forms(stage: str, manifest: dict) -> str:
    """Such as 'dpo: 812 records in the form chosen/rejected'."""
    forms = manifest.get('forms', {}).items()
    return '\n'.join(f'{stage}: {n:,} records in the form {form}' for form, n in forms)


def _without_repeats(ranking: Ranking) -> Ranking:
    """Of equal replies only the best one stays."""
    best = {}
    for reply, value in zip(ranking.replies, ranking.values, strict=True):
        best[reply] = max(value, best.get(reply, -math.inf))
    if len(best) == len(ranking.replies):
        return ranking
    return ranking._replace(replies=list(best), values=list(best.values()))


def _find_form(record, location):
    found = [
        form for form, names in FORMS.items() if any(name in record for name in names)
    ]
    if len(found) > 1:
        raise UserError(
            f'{location} has the fields of {" and of ".join(found)}: leave one of '
            'them out, or name the fields by `columns`'
        )
    form = found[0] if found else 'chosen/rejected'
    for name in FORMS[form]:
        if record.get(name) is None:
            raise UserError(
                f'{location}: has no "{name}" that is a string or messages, it has '
                f'{field_names(record)}: write {FORM}, or name the fields by `columns`'
            )
    return form


# ---- one record


def _read_pair(name, record, location) -> Ranking:
    ends = {side: record[side] for side in FORMS['chosen/rejected']}
    whole = [_is_whole(record, end) for end in ends.values()]
    if any(whole) and not all(whole):
        raise UserError(
            f'{location}: one of "chosen" and "rejected" is a whole conversation, the '
            'other a reply: write both in the same way'
        )
    if all(whole):
        prompt, replies = _split_prefix(record, ends, location)
    else:
        prompt = _read_prompt(record, location)
        replies = [_read_reply(end, side, location) for side, end in ends.items()]
    margin = record.get('margin') or 0.0
    if not _is_number(margin) or margin < 0:
        raise UserError(
            f'{location}: margin={margin!r} is not 0 or a positive number: write by '
            'how much the reward of "chosen" has to be higher'
        )
    return Ranking(name, prompt, replies, [1, 0], float(margin))


def _is_whole(record, end) -> bool:
    """Whether "chosen" or "rejected" is a conversation with its prompt."""
    if isinstance(end, str):
        return record.get('prompt') is None and TURN.match(end) is not None
    messages = end if isinstance(end, list) else []
    roles = [m.get('role', m.get('from')) for m in messages if isinstance(m, dict)]
    return len(roles) > 1 and roles[0] not in ('assistant', 'gpt')


def _split_prefix(record, ends, location):
    """(prompt, replies) of two conversations that differ in their last message."""
    parsed = []
    for side, end in ends.items():
        if isinstance(end, str):
            _, *parts = TURN.split(end)
            pairs = zip(parts[::2], parts[1::2], strict=True)
            end = [dict(role=SPEAKERS[who], content=text) for who, text in pairs]
        messages = as_messages(end, 'user', side, location)
        parsed.append(_parse({**record, side: messages}, side, location))
    (*prompt, first), (*other, second) = parsed
    if prompt != other or (first['role'], second['role']) != ('assistant',) * 2:
        raise UserError(
            f'{location}: "chosen" and "rejected" differ before the last message, or '
            'do not end with a reply: write the same prompt in both, and one reply each'
        )
    given = record.get('prompt')
    texts = [message['content'] for message in prompt]
    if isinstance(given, list):
        wrong = _read_prompt(record, location) != prompt
    else:
        wrong = given is not None and given not in texts
    if wrong:
        raise UserError(
            f'{location}: the "prompt" is not that of "chosen" and "rejected", which '
            'are whole conversations: leave it out, or write replies alone there'
        )
    return _check_prompt(prompt, location), [first['content'], second['content']]


def _read_ranking(name, record, location) -> Ranking:
    prompt, replies = _read_prompt(record, location), record['replies']
    if not isinstance(replies, list) or len(replies) < 2:
        raise UserError(
            f'{location}: "replies" is no list of at least two replies: write '
            '{"prompt": "…", "replies": ["the best", "…", "the worst"]}'
        )
    replies = [_read_reply(reply, 'replies', location) for reply in replies]
    scores = record.get('scores')
    if scores is None:
        scores = range(len(replies) - 1, -1, -1)
    elif (
        not isinstance(scores, list)
        or len(scores) != len(replies)
        or not all(map(_is_number, scores))
    ):
        raise UserError(
            f'{location}: "scores" is no list of {len(replies)} numbers, one for each '
            'reply: write them, or leave them out and write the best reply first'
        )
    if record.get('margin'):
        raise UserError(
            f'{location} has a "margin" for several replies: give "scores", whose '
            'differences times reward.margin are the margins'
        )
    return Ranking(name, prompt, replies, list(scores))


def _read_labelled(name, record, location) -> Labelled:
    if record['label'] not in (0, 1):  # false and true are equal to them
        raise UserError(
            f'{location}: label={record["label"]!r}: write true for a good reply, else '
            'false'
        )
    reply = _read_reply(record['completion'], 'completion', location)
    prompt = _read_prompt(record, location)
    return Labelled(name, prompt, reply, bool(record['label']))


_READERS = {
    'chosen/rejected': _read_pair,
    'replies': _read_ranking,
    'prompt/completion/label': _read_labelled,
}


def _is_number(value) -> bool:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _parse(record, name, location):
    return record_messages(record, name, location, FORM)


def _read_prompt(record, location) -> list[dict]:
    prompt = record.get('prompt')
    if isinstance(prompt, str | list) and prompt:
        record = record | dict(prompt=as_messages(prompt, 'user', 'prompt', location))
    return _check_prompt(_parse(record, 'prompt', location), location)


def _check_prompt(prompt, location):
    if not prompt or prompt[-1]['role'] == 'assistant':
        raise UserError(
            f'{location}: the prompt ends with a message of the assistant, and so do '
            'the replies: end the prompt with a message of the user'
        )
    return prompt


def _read_reply(value, name: str, location: str) -> str:
    """The text of a reply, which is a text or a list of one message."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) == 1:
        messages = as_messages(value, 'assistant', name, location)
        (message,) = _parse({name: messages}, name, location)
        if message['role'] == 'assistant':
            return message['content']
    raise UserError(
        f'{location}: has no "{name}" that is a string, or a list of one message of '
        f'the assistant: write {FORM}'
    )
