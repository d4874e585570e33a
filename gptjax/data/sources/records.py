"""The id and the text of a record, and what every source has in common.

A record is a dict: a JSON line, a row of a table or an example of TFDS.
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
    """An opened source; `read(advance)` yields its documents."""

    read: Callable[[Advance], Iterator[Document]]
    total: float  # the sum of all numbers that `advance` gets
    unit: str  # of the total, 'documents' or 'bytes'
    description: dict  # for the manifest: licence, citation, version or files


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


def replace_surrogates(text: str) -> str:
    """Replaces lone surrogates, which UTF-8 cannot encode: 'a\\ud83d' → 'a\\ufffd'."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    return text


def record_text(record: dict, field: str, source: ConfigDict, location: str) -> str:
    """The record's `text_field`; UserError if it is not a string.

    `field` is the name of the source in the config, 'data.sources.mine'; `location`
    names the record in an error.
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
    record: dict, field: str, source: ConfigDict, location: str, default: str
) -> str:
    """The record's `id_field`. If that is '': the field 'id', or else `default`."""
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


def check_fields(field: str, source: ConfigDict, path: str, names: Iterable) -> None:
    """Refuses a `text_field` or `id_field` that the table at `path` does not have."""
    for option in ('text_field', 'id_field'):
        name = source[option]
        if (name or option == 'text_field') and name not in names:
            raise UserError(
                f'{field}.{option}={name}: {path} has no such field, it has '
                f'{", ".join(names)}'
            )


def field_names(record: dict) -> str:
    return ', '.join(map(repr, record)) or 'none'
