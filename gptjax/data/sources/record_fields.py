"""Reads what the records of a source have besides their text, such as 'url' or 'role'.

The reports count these fields; no model learns them.
"""

import os
from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from gptjax.data.sources.open_source import list_source_files
from gptjax.data.sources.record_files import read_records


def read_fields(
    name: str, source: ConfigDict, data_dir: str | os.PathLike, names: Sequence[str]
) -> Iterator[dict]:
    """Yields the fields `names` of each record of data.sources.NAME, in order.

    A record that lacks a field has no key for it. Files of text have no records. A
    list of messages is [{'role': …, …}, …] for every kind of source.
    """
    field = f'data.sources.{name}'
    if source.kind == 'tfds':
        yield from _read_tfds(field, source, data_dir, names)
        return
    if source.kind == 'text':
        return
    files = list_source_files(source.kind, source.path, f'{field}.path')
    for _, _, record in read_records(f'{field}.path', files, lambda size: None, ''):
        yield {key: record[key] for key in names if key in record}


def _read_tfds(field, source, data_dir, names):
    from gptjax.data.sources.tfds_source import prepare_builder, read_examples

    builder = prepare_builder(field, source, data_dir)
    found = [name for name in names if name in builder.info.features]
    if found:
        for example in read_examples(builder, source.split, found):
            yield {key: to_plain(value) for key, value in example.items()}


def to_plain(value):
    """Bytes → text, arrays → lists, a dict of lists → a list of dicts."""
    if isinstance(value, bytes):
        return value.decode('utf-8', errors='replace')
    if isinstance(value, np.ndarray | np.generic):
        return to_plain(value.tolist())
    if isinstance(value, dict):
        columns = {key: to_plain(column) for key, column in value.items()}
        if all(isinstance(column, list) for column in columns.values()):
            rows = zip(*columns.values(), strict=True)
            return [dict(zip(columns, row, strict=True)) for row in rows]
        return columns
    return [to_plain(one) for one in value] if isinstance(value, list) else value
