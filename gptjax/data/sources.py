"""Where documents come from: one reader for each kind of source.

A document is an id and a text. The id names it for good: the split, the manifest
and the ledger go by it. It is the record's `id_field`; where that is '', the
record's field 'id' if it has one; else its place, as 'folder/file.jsonl#12'.

| kind    | path                                       | a document is          |
|---------|--------------------------------------------|------------------------|
| tfds    | the name of a dataset, with its config, or | an example             |
|         | the folder of a prepared one               |                        |
| text    | files that end in .txt or .md              | a file; see read_text  |
| jsonl   | .jsonl or .ndjson                          | a line                 |
| parquet | .parquet                                   | a row                  |
| chat    | .jsonl or .ndjson, lines with `messages`   | a line's conversation  |

Paths of files are a file, a folder or a glob, local or on `gs://` (any scheme that
TensorFlow reads); text and JSON lines may be packed as `.gz`.
"""

import os
from collections.abc import Iterator

from ml_collections import ConfigDict

from gptjax import files
from gptjax.data.file_sources import (
    count_rows,
    read_chat,
    read_jsonl,
    read_parquet,
    read_text,
)
from gptjax.data.paths import Advance, File, list_files
from gptjax.data.records import Document, Source
from gptjax.data.tfds_source import open_tfds
from gptjax.errors import UserError

# What a file of each kind is called when a folder is given.
SUFFIXES = {
    'text': ('.txt', '.md', '.txt.gz', '.md.gz'),
    'jsonl': ('.jsonl', '.ndjson', '.jsonl.gz', '.ndjson.gz'),
    'parquet': ('.parquet',),
    'chat': ('.jsonl', '.ndjson', '.jsonl.gz', '.ndjson.gz'),
}
KINDS = ('tfds', *SUFFIXES)


def open_source(name: str, source: ConfigDict, data_dir: str | os.PathLike) -> Source:
    """Finds a source and says what it is; its documents are read when asked for.

    Args:
        name: of the source in data.sources.
        source: its config, of the fields in configs/common.py.
        data_dir: where our own TFDS builders keep what they make; other TFDS
            datasets live in TFDS' own folder.

    Raises:
        UserError: there is no such kind, path, dataset, split or column. While
            reading: a file, line or record cannot be used, or there is none.
    """
    field = f'data.sources.{name}'
    if source.limit < 0:
        raise UserError(
            f'{field}.limit={source.limit}: use a positive number, or 0 for all'
        )
    if source.kind == 'tfds':
        found = open_tfds(field, source, data_dir)
    elif source.kind in SUFFIXES:
        paths = list_files(source.path, SUFFIXES[source.kind], f'{field}.path')
        found = _open_files(field, source, paths)
    else:
        raise UserError(
            f'{field}.kind={source.kind}: no such kind: use {", ".join(KINDS)}'
        )

    def documents(advance: Advance) -> Iterator[Document]:
        count = 0
        for count, (identity, text) in enumerate(found.documents(advance), start=1):
            yield _valid_unicode(identity), _valid_unicode(text)
            if count == source.limit:
                return
        if not count:
            raise UserError(
                f'{field}.path={source.path}: empty, there is no document in it: give '
                'a source with text'
            )

    return found._replace(documents=documents)


def describe_files(paths: list[File]) -> dict:
    """What the manifest says of files: another listing has another fingerprint."""
    return dict(
        files=len(paths),
        bytes=sum(file.size for file in paths),
        listing=files.fingerprint([[file.name, file.size] for file in paths]),
    )


def _open_files(field: str, source: ConfigDict, paths: list[File]) -> Source:
    about = dict(licence=source.licence, citation='', **describe_files(paths))
    total, unit = about['bytes'], 'bytes'
    if source.kind == 'parquet':
        total, unit = count_rows(field, source, paths), 'documents'
    read = dict(text=read_text, jsonl=read_jsonl, parquet=read_parquet, chat=read_chat)[
        source.kind
    ]
    return Source(
        lambda advance: read(field, source, paths, advance), total, unit, about
    )


def _valid_unicode(text: str) -> str:
    """Lone surrogates become U+FFFD: JSON and file names hold them, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    return text
