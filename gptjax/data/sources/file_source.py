"""Reads the sources that are files: text, JSON Lines, chat files and Parquet.

Each reader yields (id, text, licence), and raises UserError with the file and the line
if a record cannot be used. `field` is the name of the source in the config, for example
'data.sources.mine'. `advance` gets the bytes read, or for Parquet the rows.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.core.files import Advance, File, read_lines
from gptjax.data.chat_template import conversation_text
from gptjax.data.sources.record_files import Table, open_table, read_records, read_rows
from gptjax.data.sources.record_forms import read_conversation
from gptjax.data.sources.records import (
    MESSAGES,
    LicensedDocument,
    check_fields,
    record_id,
    record_licence,
    record_text,
)

PART_CHARACTERS = 10_000
TEXT_LINE = '{"text": "Once upon a time"}'

# ---- Text


def read_text(
    field: str, source: ConfigDict, paths: list[File], advance: Advance
) -> Iterator[LicensedDocument]:
    """Several files are one document each; a single file is cut into documents.

    As one document, a single file could not be split into training and validation. It
    is cut at empty lines into documents of about 10,000 characters, 'book.txt#0' and
    so on. If 20,000 characters have no empty line, it is cut at the end of a line, and
    a longer line is cut at a space. No character is lost. (To train on a whole book as
    one document, give a folder of books.)
    """
    if len(paths) == 1:
        lines = (line for _, line in read_lines(paths[0], f'{field}.path', advance))
        for number, part in enumerate(cut_text(lines)):
            yield f'{paths[0].name}#{number}', part, ''
        return
    for file in paths:
        text = ''.join(line for _, line in read_lines(file, f'{field}.path', advance))
        if text.strip():
            yield file.name, text, ''


def cut_text(lines: Iterable[str], size: int = PART_CHARACTERS) -> Iterator[str]:
    """Joins lines to documents of about `size` characters, cut at empty lines."""
    parts, length, has_text = [], 0, False
    for line in lines:
        for part in _cut_line(line, size):
            parts.append(part)
            length += len(part)
            has_text = has_text or not part.isspace()
            full = length >= size if part in ('\n', '\r\n') else length >= 2 * size
            if has_text and full:
                yield ''.join(parts)
                parts, length, has_text = [], 0, False
    if has_text:
        yield ''.join(parts)


def _cut_line(line: str, size: int) -> Iterator[str]:
    """Cuts a line of more than 2 `size` after spaces, into parts of at most `size`.

    In a file with the line ends of an old Mac, '\\r' alone, it is cut after these.
    """
    start = 0
    while len(line) - start > 2 * size:
        found = (line.rfind(mark, start, start + size) for mark in '\r ')
        end = next((place + 1 for place in found if place > start), start + size)
        yield line[start:end]
        start = end
    yield line[start:]


# ---- JSON Lines


def read_jsonl(
    field: str, source: ConfigDict, paths: list[File], advance: Advance
) -> Iterator[LicensedDocument]:
    """One JSON object per line is one document; empty lines are skipped."""
    for default_id, location, record in read_records(
        f'{field}.path', paths, advance, TEXT_LINE
    ):
        text = record_text(record, field, source, location)
        identity = record_id(record, field, source, location, default_id)
        yield identity, text, record_licence(record, field, source, location)


def read_chat(
    field: str, source: ConfigDict, paths: list[File], advance: Advance
) -> Iterator[LicensedDocument]:
    """One JSON object per line, with "messages": [{"role": …, "content": …}, …].

    The text is that of `conversation_text`, without roles. (Fine-tuning reads the
    messages instead.) All of it is learned, so a reply that gives no loss is refused.
    """
    alternative = f", or set {field}.kind='jsonl'"
    conversations = read_messages(field, source, paths, advance, alternative)
    for identity, location, messages, licence in conversations:
        if any('train' in message for message in messages):
            raise UserError(
                f'{location} has a reply of weight 0, or train false, and pretraining '
                f'learns all text: leave it out of {field}'
            )
        text = conversation_text((m['role'], m['content']) for m in messages)
        yield identity, text, licence


def read_messages(
    field: str,
    source: ConfigDict,
    paths: list[File],
    advance: Advance,
    alternative: str = '',
    with_tools: bool = False,
    forms: Counter | None = None,
) -> Iterator[tuple[str, str, list[dict], str]]:
    """Yields (id, location for an error, messages, licence) of files of conversations.

    Messages are those of `record_messages`, from any form of record_forms.py. Errors
    name an `alternative` to these. `forms` counts the records of each form.
    """
    example = f'{MESSAGES}{alternative}'
    records = read_records(f'{field}.path', paths, advance, TEXT_LINE)
    for default_id, location, record in records:
        form, messages = read_conversation(
            record, source.get('columns', ()), location, example, with_tools
        )
        if forms is not None:
            forms[form] += 1
        identity = record_id(record, field, source, location, default_id)
        licence = record_licence(record, field, source, location)
        yield identity, location, messages, licence


# ---- Tables


def read_parquet(
    field: str, source: ConfigDict, paths: list[File], advance: Advance
) -> Iterator[LicensedDocument]:
    """One row is one document; a thousand rows are read at a time."""
    for file in paths:
        table = _open_table(field, source, file)
        chosen = (source.text_field, source.id_field or 'id', source.licence_field)
        columns = [name for name in table.columns if name in chosen]
        rows = read_rows(f'{field}.path', file, table, columns)
        for row, record in enumerate(rows):
            location = f'{field}.path={file.path}: row {row}'
            text = record_text(record, field, source, location)
            default_id = f'{file.name}#{row}'
            identity = record_id(record, field, source, location, default_id)
            yield identity, text, record_licence(record, field, source, location)
            advance(1)


def count_rows(field: str, source: ConfigDict, paths: list[File]) -> int:
    """The rows of all files; UserError if a file lacks a column of the config."""
    return sum(_open_table(field, source, file).num_rows for file in paths)


def _open_table(field: str, source: ConfigDict, file: File) -> Table:
    """Opens a table, and checks that it has the columns."""
    table = open_table(f'{field}.path', file)
    check_fields(field, source, file.path, table.columns)
    return table
