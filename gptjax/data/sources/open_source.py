"""Opens the sources of documents: one reader for each kind of source.

A document has an id and a text. The split, the manifest and the ledger use the id. It
is the record's `id_field`. If that is '', it is the record's field 'id', or without
one the file and line, as 'folder/file.jsonl#12'; see `open_with_ids`.

| kind    | path                                       | a document is          |
|---------|--------------------------------------------|------------------------|
| tfds    | the name of a dataset, with its config, or | an example             |
|         | the folder of a prepared dataset           |                        |
| text    | files that end in .txt or .md              | a file; see read_text  |
| jsonl   | .jsonl or .ndjson                          | a line                 |
| parquet | .parquet, or .arrow of `save_to_disk`      | a row                  |
| chat    | any of these; see record_forms.py          | the conversation of a  |
|         |                                            | line or a row          |

A path of files is a file, a folder or a glob, local or on `gs://` (or any scheme that
TensorFlow reads). Text and JSON Lines may be compressed as `.gz`.
"""

import os
from collections.abc import Iterator
from functools import partial
from itertools import islice

from ml_collections import ConfigDict

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.core.files import (
    JSON_LINES,
    Advance,
    File,
    count_endings,
    is_remote,
    list_files,
    replace_surrogates,
)
from gptjax.data.sources.file_source import (
    count_rows,
    read_chat,
    read_jsonl,
    read_parquet,
    read_text,
)
from gptjax.data.sources.record_files import refuse_mixed_tables
from gptjax.data.sources.records import Document, Licences, Source, open_with_ids
from gptjax.data.sources.tfds_source import open_tfds

# Endings of the files that are read if the path is a folder: those of the first group
# that it has.
GROUPS = {
    'text': (('.txt', '.md', '.txt.gz', '.md.gz'),),
    'jsonl': (JSON_LINES,),
    'parquet': (('.parquet',), ('.arrow',)),
    'chat': (JSON_LINES, ('.parquet',), ('.arrow',)),
}
SUFFIXES = {kind: sum(groups, ()) for kind, groups in GROUPS.items()}
READERS = dict(text=read_text, jsonl=read_jsonl, parquet=read_parquet, chat=read_chat)


def open_source(
    name: str,
    source: ConfigDict,
    data_dir: str | os.PathLike,
    licences: Licences | None = None,
) -> Source:
    """Opens the source `name` of data.sources; reads only the first ids yet.

    `read(advance)` yields (id, text) of the documents that `licences` allows. Our TFDS
    builders write to `data_dir`; other datasets stay in the folder of TFDS.
    """
    field = f'data.sources.{name}'
    opened = open_with_ids(field, source, partial(_open, field, data_dir))
    licences, stated = licences or Licences(), opened.description['licence']
    licences.check(field, source, stated)

    def read(advance: Advance) -> Iterator[Document]:
        text = None
        documents = islice(opened.read(advance), source.limit or None)
        for identity, text, licence in documents:
            if licences.allow(field, licence or stated):
                yield replace_surrogates(identity), text  # of a file's name
        if text is None:
            raise UserError(
                f'{field}.path={source.path}: empty, it has no document: give a source '
                'with text'
            )

    return opened._replace(read=read)


def _open(field: str, data_dir: str | os.PathLike, source: ConfigDict) -> Source:
    if source.kind == 'tfds':
        return open_tfds(field, source, data_dir)
    paths = list_source_files(source.kind, source.path, f'{field}.path')
    description = describe_source_files(field, source, paths)
    total, unit = description['bytes'], 'bytes'
    if source.kind == 'parquet':
        total, unit = count_rows(field, source, paths), 'documents'
    read_kind = partial(READERS[source.kind], field, source, paths)
    return Source(read_kind, total, unit, description)


def choose_suffixes(kind: str, path: str, field: str) -> tuple[str, ...]:
    """The endings of the files that are read at a path."""
    found = count_endings(path, field).keys()
    groups = (group for group in GROUPS[kind] if found & {*group})
    return next(groups, SUFFIXES[kind])


def list_source_files(kind: str, path: str, field: str) -> list[File]:
    """The files of a source that is no TFDS dataset."""
    files = list_files(path, choose_suffixes(kind, path, field), field)
    if kind == 'chat':
        refuse_mixed_tables(field, path, files)
    return files


def describe_files(paths: list[File]) -> dict:
    """The number, bytes and a fingerprint of the names and sizes of files."""
    return dict(
        files=len(paths),
        bytes=sum(file.size for file in paths),
        listing=storage.fingerprint([[file.name, file.size] for file in paths]),
    )


def describe_source_files(field: str, source: ConfigDict, paths: list[File]) -> dict:
    """The manifest's entry for a source of files, with those that are not read."""
    endings = count_endings(source.path, f'{field}.path')
    for suffix in choose_suffixes(source.kind, source.path, f'{field}.path'):
        del endings[suffix]
    return dict(
        licence=source.licence,
        citation='',
        **describe_files(paths),
        passed_over=dict(endings),
    )


def describe_passed_over(manifest: dict) -> str:
    """Names the endings of files in a source's folder that were not read."""
    text = ''
    for name, source in manifest['sources'].items():
        if others := source.get('passed_over'):
            text += (
                f'; {name}: {source["files"]:,} files read, {sum(others.values()):,} '
                f'skipped ({", ".join(sorted(others)[:8])})'
            )
    return text


def refuse_changed_sources(
    section: str, sources: ConfigDict, manifest: dict, folder: os.PathLike
) -> None:
    """Calls `refuse_changed_files` for each source of files in a config section."""
    for name, source in sources.items():
        if source.kind != 'tfds':
            field = f'{section}.{name}.path'
            suffixes = choose_suffixes(source.kind, source.path, field)
            described = dict(source=manifest['sources'][name])
            refuse_changed_files(field, source.path, suffixes, described, folder)


def refuse_changed_conversations(
    field: str, path: str, manifest: dict, folder: os.PathLike
) -> None:
    """`refuse_changed_files` for the files of kind 'chat' at a path."""
    if not is_remote(path):
        suffixes = choose_suffixes('chat', path, field)
        refuse_changed_files(field, path, suffixes, manifest, folder)


def refuse_changed_files(
    field: str,
    path: str,
    suffixes: tuple[str, ...],
    manifest: dict,
    folder: os.PathLike,
) -> None:
    """Raises UserError if files were added, removed or resized since they were read.

    Files that are missing here, or remote, are not checked: a run does not need them
    any more. The manifest of `folder` has the result of `describe_files` as 'source';
    manifests of old runs may lack it.
    """
    if is_remote(path):
        return
    try:
        now = describe_files(list_files(path, suffixes, field))
    except UserError:
        return
    then = manifest.get('source')
    if then and now['listing'] != then['listing']:
        raise UserError(
            f'{field}={path}: {folder} was made from {then["files"]} files of '
            f'{then["bytes"]:,} bytes, and now there are {now["files"]} of '
            f'{now["bytes"]:,}: use another --workdir, or delete {folder}'
        )
