"""What a source gives, and the id and text of a record in it.

A record is a JSON line, a row of a table or an example of TFDS, as a dict.
"""

import numbers
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.core.files import Advance

Document = tuple[str, str]  # id, text
SPLITS = ('train', 'validation')
T = TypeVar('T')


class Source(NamedTuple):
    """A source that was found; `read(advance)` yields its documents."""

    read: Callable[[Advance], Iterator[Document]]
    total: float  # the sum of what `advance` gets
    unit: str  # of the total, 'documents' or 'bytes'
    description: dict  # for the manifest: licence, citation, version or files


def group_by_size(
    records: Iterable[T], size_of: Callable[[T], int], limit: int
) -> Iterator[list[T]]:
    """Records in lists that end where their sizes sum to `limit`."""
    group, size = [], 0
    for record in records:
        group.append(record)
        size += size_of(record)
        if size >= limit:
            yield group
            group, size = [], 0
    if group:
        yield group


def replace_surrogates(text: str) -> str:
    """Lone surrogates become U+FFFD: JSON and file names hold them, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    return text


def record_text(record: dict, field: str, source: ConfigDict, location: str) -> str:
    """The record's `text_field`, or UserError if that is no string.

    `field` is the source's place in the config, 'data.sources.mine'; `location` names
    the record in an error.
    """
    name = source.text_field
    if name not in record:
        raise UserError(
            f'{location} has no field {name!r}, it has {field_names(record)}: set '
            f'{field}.text_field to one of them'
        )
    if not isinstance(record[name], str):
        raise UserError(
            f'{location}: {field}.text_field={name} holds a '
            f'{type(record[name]).__name__}, no string: name another field, or mend '
            'this line'
        )
    return record[name]


def record_id(
    record: dict, field: str, source: ConfigDict, location: str, place: str
) -> str:
    """The record's id: its `id_field`; for '' its 'id' if it has one, or `place`."""
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
    return place


def field_names(record: dict) -> str:
    """The names of the record's fields, for an error."""
    return ', '.join(map(repr, record)) or 'none'
