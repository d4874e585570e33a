"""Reads records from JSON Lines, Parquet and the Arrow files of the library `datasets`.

A record is a dict: a JSON object, or a row of a table.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from gptjax.core.console import UserError
from gptjax.core.files import Advance, File, open_raw, read_json_lines

TABLES = ('.parquet', '.arrow')
BATCH = 1000  # rows that are read at a time
SPLIT = re.compile(r'(?:^|/)(train|validation|valid|dev|eval|test)(?=[-._/])')


class Table(NamedTuple):
    """An opened table.

    columns: names.
    num_rows: of the file.
    batches: names of columns → Arrow record batches.
    """

    columns: list[str]
    num_rows: int
    batches: Callable[[Sequence[str]], Iterator]


def read_records(
    field: str, files: Sequence[File], advance: Advance, example: str
) -> Iterator[tuple[str, str, dict]]:
    """Yields (default id, location for an error, record); `advance` gets bytes.

    `field` is the config field that holds the path. Errors of JSON Lines show an
    `example` of a line. Columns of a table that are null are left out.
    """
    for file in files:
        if not file.name.endswith(TABLES):
            lines = read_json_lines(file, field, example, advance)
            for number, location, record in lines:
                yield f'{file.name}#{number}', location, record
            continue
        table = open_table(field, file)
        for number, row in enumerate(read_rows(field, file, table, table.columns)):
            record = {name: value for name, value in row.items() if value is not None}
            yield f'{file.name}#{number}', f'{field}={file.path}: row {number}', record
            advance(file.size / table.num_rows)


def read_rows(
    field: str, file: File, table: Table, columns: Sequence[str]
) -> Iterator[dict]:
    """Yields the rows of a table as dicts with the chosen columns."""
    import pyarrow

    row = 0
    try:
        for batch in table.batches(columns):
            for record in batch.to_pylist():
                yield record
                row += 1
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f'{field}={file.path}: damaged after {row} rows '
            f'({" ".join(str(error).split())}): make this file again'
        ) from error


def open_table(field: str, file: File) -> Table:
    """Opens a Parquet or Arrow file; UserError if it is none."""
    import pyarrow

    arrow = file.name.endswith('.arrow')
    try:
        return (_open_arrow if arrow else _open_parquet)(field, file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f'{field}={file.path}: not {"an Arrow" if arrow else "a Parquet"} file '
            f'({" ".join(str(error).split())}): give one'
        ) from error


def _open_parquet(field, file):
    from pyarrow import parquet

    table = parquet.ParquetFile(open_raw(file, field))
    return Table(
        table.schema_arrow.names,
        table.metadata.num_rows,
        lambda columns: table.iter_batches(batch_size=BATCH, columns=list(columns)),
    )


def _open_arrow(field, file):
    """`datasets` writes a stream of record batches, which has no number of rows."""
    from pyarrow import ipc

    open_again = lambda: ipc.open_stream(open_raw(file, field))
    with open_again() as stream:
        columns = stream.schema.names
        num_rows = sum(batch.num_rows for batch in stream)
    return Table(
        columns,
        num_rows,
        lambda columns: (batch.select(list(columns)) for batch in open_again()),
    )


def refuse_mixed_tables(field: str, path: str, files: Sequence[File]) -> None:
    """Refuses tables of several splits, and caches of `datasets` among the data."""
    tables = [file for file in files if file.name.endswith(TABLES)]
    splits = {match[1] for file in tables if (match := SPLIT.search(file.name))}
    if len(splits) > 1:
        raise UserError(
            f'{field}={path}: has files of the splits {", ".join(sorted(splits))}: '
            f'name those of one split, by its folder or by a glob as {path}/train*'
        )
    for file in tables:
        if file.name.rpartition('/')[2].startswith('cache-'):
            raise UserError(
                f'{field}={path}: {file.name} is a cache of the library datasets, not '
                f'data: delete it, or give the glob {path}/data-*.arrow'
            )
