"""`stages --validation`: runs compared by the validations of their training.

    python -m gptjax stages --validation --workdir runs/text control dropout=control

It needs no evaluation. Of each run it shows bits per byte of the checkpoint with the
lowest validation loss, which later stages load, and of the last step. With the seeds
runs/text/0/dropout, runs/text/1/dropout, … each run is compared with the control of its
seed, and the interval of the n differences d is that of Student's t:

    mean(d) ± t(n - 1) std(d) / sqrt(n)

It covers initialisation and the order of the data, not the choice of the documents.
Runs whose training has not ended are left out, and the table names them.
"""

import math
import operator
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.eval.report.tables import format_interval, format_number, print_table
from gptjax.eval.report.templates import render
from gptjax.eval.stage_table import find_stage, seconds_trained
from gptjax.train.checkpoint import why_unfinished
from gptjax.train.metrics import read_metrics

LEVEL = 0.95
CHECKPOINTS = ('best', 'last')


def write_validation_table(workdir: Path, words: Sequence[str]) -> list[dict]:
    """Writes validation.json and validation.html; prints the table; returns its rows.

    `words` are 'NAME' or 'NAME=CONTROL'. A row has run, seeds, step (of the best
    checkpoint, a mean), seconds (of training), and for 'best' and 'last' a dict of
    value and, with a control, control (its value over the same seeds), difference,
    interval and effect: 'helps', 'hurts', 'equal', or 'open' if the interval has 0 in
    it; '' of one seed. If a seed diverged, value is None and effect 'diverged'.
    """
    if not words:
        raise UserError('stages: name the runs, for example control dropout=control')
    stages = [find_stage(workdir, word) for word in words]
    names = [name for s in stages for name in (s.name, s.control) if name]
    runs, left_out = {}, []
    for name in dict.fromkeys(names):
        runs[name] = read_seeds(workdir, name, left_out)
    rows = [make_row(stage.name, stage.control, runs) for stage in stages]
    storage.write_json(workdir / 'validation.json', rows)
    heading, *cells = _table_cells(rows)
    caption = (
        'Validation during training, bits per byte: of the best checkpoint and of the '
        f'last step. Means over seeds; {LEVEL:.0%} t intervals of the differences from '
        'the control with the same seed'
    )
    if left_out:
        caption += f'. Left out: {"; ".join(left_out)}'
    page = render(
        'stages.html.j2', caption=caption, heading=heading, rows=cells, skills=[]
    )
    storage.write_text(workdir / 'validation.html', page)
    print(caption)
    print_table([heading, *cells])
    return rows


class Validations(NamedTuple):
    """A run: its best and last bits per byte, None if not finite; the best's step."""

    best: float | None
    last: float | None
    step: int
    seconds: float


def read_seeds(workdir: Path, name: str, left_out: list[str]) -> dict[str, Validations]:
    """{seed: validations} of a run; appends to `left_out` which are not finished."""
    runs, unfinished = {}, []
    for folder in find_stage(workdir, name).folders:
        if why := why_unfinished(folder):
            unfinished.append(why)
        else:
            seed = str(folder.parent.relative_to(workdir))
            runs[seed] = read_validations(folder)
    if not runs:
        raise UserError(f'stages: {unfinished[0]}: run it to its end, or leave it out')
    left_out += unfinished
    return runs


def read_validations(folder: Path) -> Validations:
    """Of the validations in bits per byte; those that are not finite are None."""
    records = [
        record
        for record in read_metrics(folder / 'metrics.jsonl')
        if record['split'] == 'validation' and 'bits_per_byte' in record
    ]
    if not records:
        raise UserError(
            f'stages: {folder} has no validation in bits per byte: name runs of '
            'pretrain or sft'
        )
    finite = [record for record in records if record['bits_per_byte'] is not None]
    best = min(finite or records[:1], key=lambda record: record['bits_per_byte'])
    return Validations(
        best['bits_per_byte'],
        records[-1]['bits_per_byte'],
        best['step'],
        seconds_trained(folder),
    )


def make_row(
    name: str, control: str | None, runs: dict[str, dict[str, Validations]]
) -> dict:
    """The row of a run; see `write_validation_table`."""
    own = runs[name]
    row = dict(
        run=name,
        seeds=list(own),
        step=fmean(validations.step for validations in own.values()),
        seconds=fmean(validations.seconds for validations in own.values()),
    )
    if control and (missing := sorted(own.keys() - runs[control].keys())):
        raise UserError(
            f'stages: {control}, the control of {name}, lacks the seed '
            f'{", ".join(missing)}: run it'
        )
    for checkpoint in CHECKPOINTS:
        values = [getattr(one, checkpoint) for one in own.values()]
        row[checkpoint] = figure = dict(value=_mean(values))
        if control:
            pairs = [getattr(runs[control][seed], checkpoint) for seed in own]
            figure.update(control=_mean(pairs), difference=None, interval=None)
            if None in pairs:
                figure['effect'] = f'{control} diverged'
            elif None not in values:
                differences = map(operator.sub, values, pairs)
                figure.update(compare_seeds([*differences]))
        if figure['value'] is None:
            figure['effect'] = 'diverged'
    return row


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else fmean(values)


def compare_seeds(differences: Sequence[float]) -> dict:
    """{difference, interval, effect} of a run's differences from its control."""
    mean, interval = fmean(differences), t_interval(differences)
    if interval is None:
        return dict(difference=mean, interval=None, effect='')
    low, high = interval
    effect = 'helps' if high < 0 else 'hurts' if low > 0 else 'open'
    return dict(
        difference=mean,
        interval=[low, high],
        effect='equal' if low == high == 0 else effect,
    )


def t_interval(values: Sequence[float]) -> list[float] | None:
    """[low, high], Student's interval of the mean of `values`; None for one value."""
    from scipy.special import stdtrit

    mean, n = fmean(values), len(values)
    if n == 1:
        return None
    t = float(stdtrit(n - 1, (1 + LEVEL) / 2))
    half = t * stdev(values) / math.sqrt(n)
    return [mean - half, mean + half]


def _table_cells(rows: Sequence[dict]) -> list[tuple[str, ...]]:
    heading = ['run', 'seeds', 'seconds', 'best at step']
    for name in CHECKPOINTS:
        heading += [name, 'control', f'{name} - control', '']
    cells = [tuple(heading)]
    for row in rows:
        line = [row['run'], str(len(row['seeds']))]
        line += [f'{row["seconds"]:,.0f}', f'{row["step"]:,.0f}']
        for name in CHECKPOINTS:
            figure = row[name]
            line.append(format_number(figure['value']))
            control = difference = ''
            if 'control' in figure:
                control = format_number(figure['control'])
            if (value := figure.get('difference')) is not None:
                difference = f'{value:+.3f}{format_interval(figure["interval"])}'
            line += [control, difference, figure.get('effect', '')]
        cells.append(tuple(line))
    return cells
