"""`stages --validation`: runs compared by the validations of their training.

    python -m gptjax stages --validation --workdir runs/text control dropout=control

It needs no evaluation. Of each run it shows bits per byte of the checkpoint with the
lowest validation loss, which later stages load, and of the last step. With the seeds
runs/text/0/dropout, runs/text/1/dropout, … each run is compared with the control of its
seed, and the interval of the n differences d is that of Student's t:

    mean(d) ± t(n - 1) std(d) / sqrt(n)

It covers initialisation and the order of the data, not the choice of the documents.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.eval.report.tables import format_interval, format_number, print_table
from gptjax.eval.report.templates import render
from gptjax.eval.stage_table import Stage, find_stage, seconds_trained
from gptjax.train.metrics import read_metrics

LEVEL = 0.95
CHECKPOINTS = ('best', 'last')


def write_validation_table(workdir: Path, words: Sequence[str]) -> list[dict]:
    """Writes validation.json and validation.html; prints the table; returns its rows.

    `words` are 'NAME' or 'NAME=CONTROL'. A row has run, seeds, step (of the best
    checkpoint, a mean), seconds (of training), and for 'best' and 'last' a dict of
    value and, with a control, difference, interval and effect: 'helps', 'hurts',
    'equal', or 'open' if the interval has 0 in it; '' of one seed.
    """
    if not words:
        raise UserError('stages: name the runs, for example control dropout=control')
    stages = [find_stage(workdir, word) for word in words]
    rows = [make_row(workdir, stage) for stage in stages]
    storage.write_json(workdir / 'validation.json', rows)
    heading, *cells = _table_cells(rows)
    caption = (
        'Validation during training, bits per byte: of the best checkpoint and of the '
        f'last step. Means over seeds; {LEVEL:.0%} t intervals of the differences from '
        'the control with the same seed'
    )
    page = render(
        'stages.html.j2', caption=caption, heading=heading, rows=cells, skills=[]
    )
    storage.write_text(workdir / 'validation.html', page)
    print(caption)
    print_table([heading, *cells])
    return rows


def make_row(workdir: Path, stage: Stage) -> dict:
    """The row of a run; see `write_validation_table`."""
    runs = {_seed_of(workdir, folder): folder for folder in stage.folders}
    found = {seed: read_validations(folder) for seed, folder in runs.items()}
    row = dict(
        run=stage.name,
        seeds=list(runs),
        step=fmean(best['step'] for best, _ in found.values()),
        seconds=fmean(map(seconds_trained, runs.values())),
    )
    control = {}
    if stage.control:
        folders = find_stage(workdir, stage.control).folders
        control = {_seed_of(workdir, folder): folder for folder in folders}
        if missing := sorted(runs.keys() - control.keys()):
            raise UserError(
                f'stages: {stage.control}, the control of {stage.name}, lacks the seed '
                f'{", ".join(missing)}: run it'
            )
    for number, name in enumerate(CHECKPOINTS):
        values = {s: pair[number]['bits_per_byte'] for s, pair in found.items()}
        row[name] = dict(value=fmean(values.values()))
        if control:
            differences = [
                value - read_validations(control[seed])[number]['bits_per_byte']
                for seed, value in values.items()
            ]
            row[name].update(compare_seeds(differences))
    return row


def read_validations(folder: Path) -> tuple[dict, dict]:
    """(best, last) of a run's validations: dicts with `step` and `bits_per_byte`."""
    records = [
        record
        for record in read_metrics(folder / 'metrics.jsonl')
        if record['split'] == 'validation' and record.get('bits_per_byte') is not None
    ]
    if not records:
        raise UserError(
            f'stages: {folder} has no validation in bits per byte: name runs of '
            'pretrain or sft'
        )
    return min(records, key=lambda record: record['bits_per_byte']), records[-1]


def compare_seeds(differences: Sequence[float]) -> dict:
    """{difference, interval, effect} of a run's differences from its control."""
    from scipy.special import stdtrit

    mean, n = fmean(differences), len(differences)
    if n == 1:
        return dict(difference=mean, interval=None, effect='')
    t = float(stdtrit(n - 1, (1 + LEVEL) / 2))
    half = t * stdev(differences) / math.sqrt(n)
    low, high = mean - half, mean + half
    effect = 'helps' if high < 0 else 'hurts' if low > 0 else 'open'
    return dict(
        difference=mean,
        interval=[low, high],
        effect='equal' if low == high == 0 else effect,
    )


def _seed_of(workdir: Path, folder: Path) -> str:
    return str(folder.parent.relative_to(workdir))


def _table_cells(rows: Sequence[dict]) -> list[tuple[str, ...]]:
    heading = ['run', 'seeds', 'seconds', 'best at step']
    for name in CHECKPOINTS:
        heading += [name, f'{name} - control', '']
    cells = [tuple(heading)]
    for row in rows:
        line = [row['run'], str(len(row['seeds']))]
        line += [f'{row["seconds"]:,.0f}', f'{row["step"]:,.0f}']
        for name in CHECKPOINTS:
            figure = row[name]
            line.append(format_number(figure['value']))
            if 'difference' in figure:
                interval = format_interval(figure['interval'])
                line += [f'{figure["difference"]:+.3f}{interval}', figure['effect']]
            else:
                line += ['', '']
        cells.append(tuple(line))
    return cells
