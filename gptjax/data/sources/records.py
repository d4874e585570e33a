"""The id, text and messages of a record, and what every source has in common.

A record is a dict: a JSON line, a row of a table or an example of TFDS.
"""

import json
import numbers
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.core.files import Advance
from gptjax.data.chat_template import check_role

Document = tuple[str, str]  # id, text
LicensedDocument = tuple[str, str, str]  # with the licence of its record, or ''
OTHER_LICENCE = 'other_licence'  # why a document is left out, in manifests
SPLITS = ('train', 'validation')
MESSAGES = (
    '{"messages": [{"role": "user", "content": "…"}, '
    '{"role": "assistant", "content": "…"}]}'
)
# Fields of a record and of a message that would change what a model reads or learns.
# They are refused, except with a value that changes nothing.
RECORD_FIELDS = ('tools', 'functions', 'system', 'images', 'weight', 'train')
MESSAGE_FIELDS = (
    *('name', 'tool_calls', 'tool_call_id', 'function_call', 'refusal', 'train_detail'),
    *('reasoning_content', 'thinking', 'image', 'images', 'audio'),
)
TOOL_FIELDS = ('name', 'tool_calls', 'tool_call_id', 'reasoning_content')
PLACE = '#'  # as `id_field`: the file and line are the id, whatever fields there are
MANY_IDS = 20  # with more values, a field is an id
CHANGES_NOTHING = (None, '', [], {}, 1)  # 1 is a weight
T = TypeVar('T')


class Source(NamedTuple):
    """An opened source; `read(advance)` yields its documents."""

    read: Callable[[Advance], Iterator]
    total: float  # the sum of all numbers that `advance` gets
    unit: str  # of the total, 'documents' or 'bytes'
    description: dict  # for the manifest: licence, citation, version or files


class Licences:
    """Leaves out what data.licences does not allow, and counts it by source.

    Licences are compared without case: 'mit' is 'MIT'. If none are given, all are
    allowed.
    """

    def __init__(self, allowed: Sequence[str] = ()):
        self._allowed = {licence.strip().casefold() for licence in allowed}
        self._names = ', '.join(allowed)
        self._left_out, self._counts = Counter(), defaultdict(Counter)

    def allow(self, field: str, licence: str) -> bool:
        """Whether a document of the source `field` with this licence may be used."""
        licence = licence.strip()
        allowed = not self._allowed or licence.casefold() in self._allowed
        self._counts[field][licence] += 1
        self._left_out[field] += not allowed
        return allowed

    def count_left_out(self, field: str) -> dict[str, int]:
        """What the manifest counts of a source, if licences are given."""
        return {OTHER_LICENCE: self._left_out[field]} if self._allowed else {}

    def describe(self, field: str, source: ConfigDict) -> dict:
        """The manifest's entry of a source whose records state their licences."""
        counts = self._counts[field]
        return (
            dict(licences=dict(sorted(counts.items()))) if source.licence_field else {}
        )

    def check_sources(self, section: str, sources: ConfigDict) -> None:
        """Raises UserError if no licence of a source is known; a dataset is opened."""
        for name, source in sources.items():
            if source.kind != 'tfds':
                self.check(f'{section}.{name}', source, source.licence)

    def check(self, field: str, source: ConfigDict, licence: str) -> None:
        if self._allowed and not (licence or source.licence_field):
            raise UserError(
                f'{field}.licence is empty, and data.licences allows {self._names}: '
                f'give the licence of the source, or the field of its records that '
                f'has it as {field}.licence_field'
            )


def open_with_ids(
    field: str, source: ConfigDict, open_source: Callable[[ConfigDict], Source]
) -> Source:
    """Opens a source; the records' places are the ids if the given ones are no ids.

    A class label or the name of a corpus, which a few values repeat in all records,
    cannot split them. Ids of up to MANY_IDS values that occur more than three times on
    average, or a single value, count as such. The description then has a note, 'ids'.

    Args:
        open_source: opens the source with a config, of which `id_field` may be PLACE.
    """
    opened = open_source(source)
    if source.kind == 'text':  # the ids are names of files
        return opened
    ids, records = Counter(), opened.read(lambda amount: None)
    try:
        for identity, *_ in islice(records, source.limit or None):
            ids[identity] += 1
            if len(ids) > MANY_IDS:
                return opened
    except UserError:  # it comes again when the records are read
        return opened
    if ids.total() <= (3 * len(ids) if len(ids) > 1 else 1):
        return opened
    places = source.copy_and_resolve_references()
    places.id_field = PLACE
    opened = open_source(places)
    note = (
        f'{field}.id_field: {ids.total():,} records have {len(ids)} different '
        f'{source.id_field or "id"!r}, so it is no id: the place of each is used'
    )
    return opened._replace(description=dict(opened.description, ids=note))


def group_by_size(
    records: Iterable[T], size_of: Callable[[T], int], limit: int
) -> Iterator[list[T]]:
    """Yields lists of records; a list ends when its sizes sum to `limit` or more."""
    group, size = [], 0
    for record in records:
        group.append(record)
        size += size_of(record)
        if size >= limit:
            yield group
            group, size = [], 0
    if group:
        yield group


def record_text(record: dict, field: str, source: ConfigDict, location: str) -> str:
    """The record's `text_field`, '' for null; UserError if it is not a string.

    `field` is the name of the source in the config, 'data.sources.mine'; `location`
    names the record in an error.
    """
    name = source.text_field
    if name not in record:
        raise UserError(
            f'{location} has no field {name!r}, it has {field_names(record)}: set '
            f'{field}.text_field to one of them'
        )
    text = '' if record[name] is None else record[name]
    if not isinstance(text, str):
        raise UserError(
            f'{location}: {field}.text_field={name} holds a {type(text).__name__}, no '
            'string: name another field, or write strings there'
        )
    return text


def record_messages(
    record: dict,
    name: str,
    location: str,
    example: str = MESSAGES,
    with_tools: bool = False,
) -> list[dict]:
    """The record's list of messages `name`, each as `parse_message` returns it.

    `location` names the record in an error, which shows an `example` of a line.
    """
    _refuse_fields(record, RECORD_FIELDS, location)
    value = record.get(name)
    if not isinstance(value, list) or not value:
        found = f'it has {field_names(record)}: convert each line to'
        if isinstance(value, str):
            found = 'but a text: write the list without quotes around it, as in'
        elif name in record:
            found = f'but {json.dumps(value)[:40]}: write lines as'
        raise UserError(f'{location} has no list "{name}", {found} {example}')
    return [
        parse_message(message, f'{location}: {name}[{number}]', example, with_tools)
        for number, message in enumerate(value)
    ]


def parse_message(
    message, location: str, example: str = MESSAGES, with_tools: bool = False
) -> dict:
    """Checks a message; returns its `role` and `content`, a text.

    The role 'developer' becomes 'system', and the texts of a content in parts are
    joined. A reply with weight 0, or train false, gets `train=False`: it gives no loss.
    Other fields are ignored, or refused if they change what a model learns.
    `with_tools` takes the role 'tool' and the fields TOOL_FIELDS, for the template of
    an imported model.
    """
    if not isinstance(message, dict):
        message = {}
    role, content = message.get('role'), message.get('content')
    if isinstance(role, str):
        role = 'system' if role == 'developer' else role
        if not (with_tools and role == 'tool'):
            check_role(role, location)
    tools = {n: message[n] for n in TOOL_FIELDS if with_tools and message.get(n)}
    _refuse_fields(message, [n for n in MESSAGE_FIELDS if n not in tools], location)
    if content is None and 'tool_calls' in tools:
        content = ''
    if isinstance(content, list):
        content = _join_texts(content, location)
    for name, text in dict(role=role, content=content).items():
        if not isinstance(text, str):
            raise UserError(
                f'{location} has no "{name}" that is a string: write lines as {example}'
            )
    weights = [message[n] for n in ('weight', 'train') if message.get(n) is not None]
    for weight in weights:
        if weight not in (0, 1):  # false and true are equal to them
            raise UserError(
                f'{location} has the weight {json.dumps(weight)}: use 0 or 1 (train: '
                'false or true), no loss has other weights'
            )
        if weight and role != 'assistant':
            raise UserError(
                f'{location} of the role {role} has weight 1 or train true: leave that '
                'out, only replies of the assistant are learned'
            )
    without_loss = role == 'assistant' and not all(weights)
    trained = dict(train=False) if without_loss else {}
    return dict(role=role, content=content) | trained | tools


def _join_texts(content: list, location: str) -> str:
    """[{"type": "text", "text": "a "}, {"type": "text", "text": "b"}] → 'a b'"""
    for part in content:
        kind = part.get('type') if isinstance(part, dict) else None
        if kind != 'text' or not isinstance(part.get('text'), str):
            raise UserError(
                f'{location} has a part of "content" of the type {kind!r}: only text '
                'is read, as {"type": "text", "text": "…"}: leave out the part, or '
                'this line'
            )
    return ''.join(part['text'] for part in content)


def _refuse_fields(record: dict, names: Iterable[str], location: str) -> None:
    for name in names:
        if record.get(name) not in CHANGES_NOTHING:
            raise UserError(
                f'{location} has the field "{name}", which is not supported: write '
                'what it says as the text of a message, or leave the field or the line '
                'out'
            )


def record_id(
    record: dict, field: str, source: ConfigDict, location: str, default: str
) -> str:
    """The record's `id_field`. If that is '': the field 'id', or else `default`."""
    if source.id_field == PLACE:
        return default
    value = record.get(source.id_field or 'id')
    if isinstance(value, bytes):
        value = value.decode('utf-8', errors='replace')
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value:
        return value
    if source.id_field:
        raise UserError(
            f'{location}: {field}.id_field={source.id_field} holds no string or whole '
            f"number, the fields are {field_names(record)}: name another, or ''"
        )
    return default


def record_licence(record: dict, field: str, source: ConfigDict, location: str) -> str:
    """The record's `licence_field`; '' for null, or if the config names none."""
    name = source.licence_field
    if not name:
        return ''
    value = '' if name in record and record[name] is None else record.get(name)
    if isinstance(value, bytes):
        value = value.decode('utf-8', errors='replace')
    if not isinstance(value, str):
        raise UserError(
            f'{location}: {field}.licence_field={name} holds no string, the fields are '
            f"{field_names(record)}: name another, or ''"
        )
    return value


def check_fields(field: str, source: ConfigDict, path: str, names: Iterable) -> None:
    """Refuses a field of the config that the table at `path` does not have."""
    for option in ('text_field', 'id_field', 'licence_field'):
        name = source[option]
        if name == PLACE and option == 'id_field':
            continue
        if (name or option == 'text_field') and name not in names:
            raise UserError(
                f'{field}.{option}={name}: {path} has no such field, it has '
                f'{", ".join(names)}'
            )


def field_names(record: dict) -> str:
    return ', '.join(map(repr, record)) or 'none'
