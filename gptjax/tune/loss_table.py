"""A table of finished runs, for `scaling --fit FILE.csv`."""

import csv
import math
from pathlib import Path

import numpy as np

from gptjax.core.console import UserError
from gptjax.eval.bootstrap import BootstrapSettings
from gptjax.tune.scaling_law import Fit, Runs, fit_runs

# The names that a column may have.
COLUMNS = dict(
    parameters=('parameters', 'params', 'N'),
    tokens=('tokens', 'D'),
    flops=('training_flop', 'flops', 'C'),
    losses=('loss', 'L'),
)


def read_table(path: str, num_dropped: int) -> Runs:
    """The runs of a CSV file, without those with the highest losses.

    Without a column of tokens, tokens are flops / (6 parameters). Raises UserError,
    which names the line, for a value that is not a positive number.
    """
    try:
        with open(Path(path).expanduser(), encoding='utf-8-sig', newline='') as file:
            reader = csv.DictReader(file)
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            columns = _find_columns(path, names)
            rows = [_read_row(path, reader.line_num, row, columns) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'--fit={path}: {reason}: give a CSV file') from error
    if not 0 <= num_dropped < max(len(rows), 1):
        raise UserError(
            f'--drop={num_dropped}: the table has {len(rows)} rows: use a number from '
            f'0 to {max(len(rows) - 1, 0)}'
        )
    rows.sort(key=lambda row: row['losses'])
    rows = rows[: len(rows) - num_dropped]
    table = {name: np.array([row[name] for row in rows]) for name in columns}
    if 'tokens' not in table:
        table['tokens'] = table['flops'] / (6 * table['parameters'])
    return Runs(table['parameters'], table['tokens'], table['losses'])


def _find_columns(path: str, names: list[str]) -> dict[str, str]:
    found = {
        column: name
        for column, known in COLUMNS.items()
        for name in names
        if name in known
    }
    for column, others in (
        ('parameters', ()),
        ('tokens', ('flops',)),
        ('losses', ()),
    ):
        if not found.keys() & {column, *others}:
            wanted = [name for c in (column, *others) for name in COLUMNS[c]]
            raise UserError(
                f'--fit={path}: no column of {column} (it has {", ".join(names)}): '
                f'name one of them {", ".join(wanted)}'
            )
    return found


def _read_row(path, line, row, columns) -> dict[str, float]:
    values = {}
    for column, name in columns.items():
        try:
            values[column] = float(row[name])
        except (TypeError, ValueError):
            values[column] = math.nan
        if not 0 < values[column] < math.inf:
            raise UserError(
                f'--fit={path}: line {line}: {name}={row[name]}: use a positive number'
            )
    return values


def fit_table(path: str, num_dropped: int) -> tuple[int, Fit]:
    """(the number of runs, the fit with a thousand resamples)."""
    runs = read_table(path, num_dropped)
    return len(runs.losses), fit_runs(runs, BootstrapSettings(1000, 0.95, 0))


def describe_fit(constants: dict[str, dict]) -> list[tuple]:
    """Rows of a table of {name: {value, interval}}."""
    words = dict(optimum='a, N_opt ~ C^a')
    rows = [('', 'value', '95% interval')]
    for name, constant in constants.items():
        value, low, high = (  # an end may be infinite, which JSON has as null
            '∞' if number is None else f'{number:,.4g}'
            for number in (constant['value'], *constant['interval'])
        )
        rows.append((words.get(name, name), value, f'{low} … {high}'))
    return rows
