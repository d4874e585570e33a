"""Readers of the sources that are files: text, JSON lines, chat, Parquet.

Each yields (id, text) and raises UserError, with the file and the line, for what it
cannot use. `field` is the source's place in the config, 'data.sources.mine', and
`advance` is told the bytes (of Parquet, the rows) that were read.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.core.files import Advance, File, open_raw, read_json_lines, read_lines
from gptjax.data.chat_template import conversation_text
from gptjax.data.sources.records import Document, field_names, record_id, record_text

PIECE_CHARACTERS = 10_000

# ---- Text


def read_text(
    field: str, source: ConfigDict, paths: list[File], advance: Advance
) -> Iterator[Document]:
    """Several files are a document each; one file alone is cut into documents.

    A single file, as a book or all of Shakespeare, would be one document and so
    could not be divided between training and validation. It is cut at empty lines
    into documents of about 10,000 characters, 'book.txt#0' and so on; a piece twice
    as long without an empty line is cut at a line's end, and a line longer than
    that at a blank. Nothing is lost. (To train on a book as one document, give a
    folder of books.)
    """
    if len(paths) == 1:
        lines = (line for _, line in read_lines(paths[0], f'{field}.path', advance))
        for place, piece in enumerate(_cut_text(lines)):
            yield f'{paths[0].name}#{place}', piece
        return
    for file in paths:
        text = ''.join(line for _, line in read_lines(file, f'{field}.path', advance))
        if text.strip():
            yield file.name, text


def _cut_text(lines: Iterator[str], size: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Groups lines into documents of about `size` characters, at empty lines."""
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
    """A line of more than 2 `size` in parts of at most `size`, cut after a blank."""
    start = 0
    while len(line) - start > 2 * size:
        blank = line.rfind(' ', start, start + size)
        end = blank + 1 if blank > start else start + size
        yield line[start:end]
        start = end
    yield line[start:]


# ---- JSON lines


def read_jsonl(
    field: str, source: ConfigDict, paths: list[File], advance: Advance
) -> Iterator[Document]:
    """One JSON object a line; empty lines are passed over."""
    for place, location, record in _read_records(field, paths, advance):
        text = record_text(record, field, source, location)
        yield record_id(record, field, source, location, place), text


def read_chat(
    field: str, source: ConfigDict, paths: list[File], advance: Advance
) -> Iterator[Document]:
    """One JSON object a line, with "messages": [{"role": …, "content": …}, …].

    The text is the conversation as `conversation_text` writes it: roles are not
    named. (Fine-tuning on dialogue reads the messages themselves.)
    """
    otherwise = f", or set {field}.kind='jsonl'"
    conversations = read_messages(field, source, paths, advance, otherwise)
    for identity, _, messages in conversations:
        text = conversation_text((m['role'], m['content']) for m in messages)
        yield identity, text


def read_messages(
    field: str,
    source: ConfigDict,
    paths: list[File],
    advance: Advance,
    otherwise: str = '',
) -> Iterator[tuple[str, str, list[dict]]]:
    """Yields (id, place for an error, messages) of chat files.

    Every message has `role` and `content`, which are strings; what else it has
    is passed on. A `content` in parts of text is joined. Errors say what can be given
    `otherwise` than chat files.
    """
    for place, location, record in _read_records(field, paths, advance):
        messages = record.get('messages')
        if not isinstance(messages, list) or not messages:
            raise UserError(
                f'{location} has no list "messages", it has {field_names(record)}: '
                f'convert each line to {CHAT}{otherwise}'
            )
        messages = [
            _message(message, f'{location}: messages[{number}]')
            for number, message in enumerate(messages)
        ]
        yield record_id(record, field, source, location, place), location, messages


CHAT = (
    '{"messages": [{"role": "user", "content": "…"}, '
    '{"role": "assistant", "content": "…"}]}'
)


def _message(message, location: str) -> dict:
    """The message with a text as its content."""
    if not isinstance(message, dict) or not isinstance(message.get('role'), str):
        raise UserError(
            f'{location} has no "role" that is a string: write lines of {CHAT}'
        )
    content = message.get('content')
    if isinstance(content, list):
        content = ''.join(_read_part(part, location) for part in content)
        return dict(message, content=content)
    if content is None and ('tool_calls' in message or 'function_call' in message):
        raise UserError(
            f'{location} calls a tool and has no "content": write the call there as a '
            'text, or leave this line out'
        )
    if not isinstance(content, str):
        raise UserError(
            f'{location} has no "content" that is a string: write lines of {CHAT}'
        )
    return message


def _read_part(part, location: str) -> str:
    """The text of a part of a content, {"type": "text", "text": "…"}."""
    kind = part.get('type') if isinstance(part, dict) else None
    if kind != 'text' or not isinstance(part.get('text'), str):
        raise UserError(
            f'{location} has a part of "content" of the type {kind!r}: only text is '
            'read, as {"type": "text", "text": "…"}: leave out the part, or this line'
        )
    return part['text']


def _read_records(
    field: str, paths: list[File], advance: Advance
) -> Iterator[tuple[str, str, dict]]:
    """Yields (place for an id, place for an error, the line's JSON object)."""
    for file in paths:
        records = read_json_lines(file, f'{field}.path', advance=advance)
        for number, location, record in records:
            yield f'{file.name}#{number}', location, record


# ---- Parquet


def read_parquet(
    field: str, source: ConfigDict, paths: list[File], advance: Advance
) -> Iterator[Document]:
    """One document a row, read a thousand rows at a time."""
    for file in paths:
        with _open_parquet(field, source, file) as table:
            chosen = (source.text_field, source.id_field or 'id')
            columns = [name for name in table.schema_arrow.names if name in chosen]
            for row, record in enumerate(_rows(field, file, table, columns)):
                location = f'{field}.path={file.path}: row {row}'
                text = record_text(record, field, source, location)
                place = f'{file.name}#{row}'
                yield record_id(record, field, source, location, place), text
                advance(1)


def _rows(field: str, file: File, table, columns: list[str]) -> Iterator[dict]:
    import pyarrow

    row = 0
    try:
        for batch in table.iter_batches(batch_size=1000, columns=columns):
            for record in batch.to_pylist():
                yield record
                row += 1
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f'{field}.path={file.path}: damaged after {row} rows '
            f'({_one_line(error)}): make this file again'
        ) from error


def count_rows(field: str, source: ConfigDict, paths: list[File]) -> int:
    """The rows of all the files; checks their columns on the way."""
    total = 0
    for file in paths:
        with _open_parquet(field, source, file) as table:
            total += table.metadata.num_rows
    return total


def _open_parquet(field: str, source: ConfigDict, file: File):
    """The file as pyarrow's ParquetFile, with the columns that the config names."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(open_raw(file, f'{field}.path'))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f'{field}.path={file.path}: not a Parquet file ({_one_line(error)}): '
            f'give one, or set {field}.kind'
        ) from error
    columns = table.schema_arrow.names
    for option in ('text_field', 'id_field'):
        name = source[option]
        if (name or option == 'text_field') and name not in columns:
            raise UserError(
                f'{field}.{option}={name}: {file.path} has no such column, it has '
                f'{", ".join(columns)}'
            )
    return table


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())
