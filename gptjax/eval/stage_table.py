"""Several runs in one table: each stage beside its control, over one seed or several.

    python -m gptjax stages --workdir runs sums_sft grpo=sums_more

`grpo=sums_more` compares runs/grpo with its control runs/sums_more: from the same
start and with the same compute, so that the difference is the stage's own; the seconds
that each was trained stand beside it. Where the runs lie in a folder a seed
(runs/study/0/grpo, runs/study/1/grpo), figures are means over the seeds, and the range
of the seeds stands in the place of an interval.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.eval import compare, results
from gptjax.eval.results import between, short
from gptjax.train.metrics import read_metrics

# Of each kind of task the figures that are told; all of them are in RUN/eval.json.
TOLD = dict(
    perplexity=('bits_per_byte',),
    dialogue=('reply_bits', 'accuracy_tokens', 'stops', 'stops_drawn'),
    verifiable=('accuracy', 'accuracy_drawn', 'pass_at_8'),
)


class Stage(NamedTuple):
    """A run by its name, with one folder a seed, and the name of its control."""

    name: str
    folders: list[Path]
    control: str | None


def tell(workdir: Path, words: Sequence[str]) -> dict:
    """Writes stages.json and stages.html into a folder of runs; prints the table.

    Args:
        workdir: the folder that holds the runs, or folders of seeds that do.
        words: 'NAME' or 'NAME=CONTROL', in the order of the table.

    Returns:
        {rows: [...], seeds, level}; a row has task, figure, stage, the seconds it was
        trained, value, interval, control, difference and the difference's interval.

    Raises:
        UserError: no runs are named, one is not there or was not evaluated, or a
            control was not asked the same.
    """
    if not words:
        raise UserError('stages: name the runs, as sums_sft grpo=sums_more')
    stages = [_find(workdir, word) for word in words]
    by_name = {stage.name: stage for stage in stages}
    for stage in stages:
        if stage.control and stage.control not in by_name:
            by_name[stage.control] = _find(workdir, stage.control)
    read = {
        folder: compare.read(str(folder))
        for stage in by_name.values()
        for folder in stage.folders
    }
    rows = [row for stage in stages for row in _rows(stage, by_name, read)]
    if not rows:
        told = ', '.join(sorted({name for names in TOLD.values() for name in names}))
        raise UserError(
            f'stages: none of the runs was asked for {told}: run the stage eval with '
            '--tasks first'
        )
    order = {name: place for place, name in enumerate(dict.fromkeys(_keys(rows)))}
    rows.sort(key=lambda row: order[row['task'], row['figure']])
    (level, *_) = {
        its['bootstrap']['level']
        for found in read.values()
        for its in _tasks(found).values()
    }
    found = dict(rows=rows, seeds=len(stages[0].folders), level=level)
    storage.write_json(workdir / 'stages.json', found)
    storage.write_text(workdir / 'stages.html', page(found))
    print(text(found))
    return found


def _find(workdir: Path, word: str) -> Stage:
    name, _, control = word.partition('=')
    folders = [workdir / name]
    if not folders[0].is_dir():
        folders = sorted(folder for folder in workdir.glob(f'*/{name}'))
    if not folders:
        raise UserError(f'stages: {workdir} has no run {name}, nor has a folder in it')
    return Stage(name, folders, control or None)


def _rows(stage: Stage, by_name: dict[str, Stage], read: dict) -> list[dict]:
    """A row for each figure of each task that the stage was asked."""
    rows = []
    seconds = fmean(map(seconds_trained, stage.folders))
    first = _tasks(read[stage.folders[0]])
    for task, its in first.items():
        asked = [_tasks(read[folder]).get(task) for folder in stage.folders]
        if None in asked:
            missing = stage.folders[asked.index(None)]
            raise UserError(f'stages: {missing} was not asked for {task}: run eval')
        for figure in TOLD[its['kind']]:
            row = dict(task=task, figure=figure, stage=stage.name, seconds=seconds)
            row.update(_over_seeds([found['figures'][figure] for found in asked]))
            if stage.control:
                control = by_name[stage.control]
                row.update(_against(stage, control, task, figure, read))
            rows.append(row)
    return rows


def seconds_trained(workdir: Path) -> float:
    """Seconds of a run's steps, or its rollouts, its first compilation included."""
    return sum(
        line['step_seconds']
        for line in read_metrics(workdir / 'metrics.jsonl')
        if line['split'] == 'train'
    )


def _tasks(found: dict) -> dict:
    """The tasks of one evaluation that the table tells of."""
    return {name: t for name, t in found['tasks'].items() if t['kind'] in TOLD}


def _seeds(stage: Stage) -> list[str]:
    """The names of the folders of its seeds; of one run, that there is one."""
    if len(stage.folders) == 1:
        return ['one']
    return [folder.parent.name for folder in stage.folders]


def _over_seeds(figures: Sequence[dict]) -> dict:
    """{value, interval}: of one seed its own, of several their mean and range.

    Both are None where a seed has no finite value.
    """
    if len(figures) == 1:
        return dict(value=figures[0]['value'], interval=figures[0]['interval'])
    values = [figure['value'] for figure in figures]
    if None in values:
        return dict(value=None, interval=None, values=values)
    return dict(value=fmean(values), interval=[min(values), max(values)], values=values)


def _against(stage: Stage, control: Stage, task: str, figure: str, read: dict) -> dict:
    """{control, difference, difference_interval} of a stage, seed by seed."""
    seeds, its = (_seeds(of) for of in (stage, control))
    if seeds != its:
        raise UserError(
            f'stages: {stage.name} has the seeds {", ".join(seeds)} and its control '
            f'{control.name} {", ".join(its)}: run what is missing'
        )
    differences = []
    for ours, theirs in zip(stage.folders, control.folders, strict=True):
        if task not in read[theirs]['tasks']:
            raise UserError(f'stages: {theirs} was not asked for {task}: run eval')
        names = (task, str(theirs), str(ours))
        found = compare.differences(*names, read[theirs], read[ours])[figure]
        differences.append(dict(value=found['difference'], interval=found['interval']))
    over = _over_seeds(differences)
    return dict(
        control=control.name,
        difference=over['value'],
        difference_interval=over['interval'],
    )


def _keys(rows):
    return [(row['task'], row['figure']) for row in rows]


# ---- what is shown


def _cells(found: dict) -> list[tuple[str, ...]]:
    """The table's rows, the heading first; what is as above is left out."""
    rows = [('task', 'figure', 'stage', 'seconds', 'value', 'beside', 'difference')]
    before = None
    for row in found['rows']:
        key = (row['task'], results.label_of(row['figure']))
        value = f'{short(row["value"])}{between(row["interval"])}'
        control = difference = ''
        if 'control' in row:
            control = row['control']
            difference = '–'
            if row['difference'] is not None:
                interval = between(row['difference_interval'])
                difference = f'{row["difference"]:+.3f}{interval}'
        shown = key if key != before else ('', '')
        seconds = f'{row["seconds"]:,.0f}'
        rows.append((*shown, row['stage'], seconds, value, control, difference))
        before = key
    return rows


def _about(found: dict) -> str:
    if found['seeds'] == 1:
        return (
            f'One seed; {found["level"]:.0%} bootstrap intervals over items, of '
            'differences paired'
        )
    return f'Means over {found["seeds"]} seeds (the lowest … the highest of them)'


def text(found: dict) -> str:
    """The table for the screen."""
    return f'{_about(found)}\n{results.columns_text(_cells(found))}'


def page(found: dict) -> str:
    """The table as one HTML page."""
    head, *rows = _cells(found)
    line = lambda tag, row: (
        '<tr>' + ''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in row) + '</tr>'
    )
    style = (Path(__file__).parent / 'report' / 'report.css').read_text('utf-8')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>Stages · gptjax</title><style>\n{style}</style></head>\n<body><main>'
        f'<h1>Stages</h1><p>{escape(_about(found))}.</p>\n<table>'
        + line('th', head)
        + '\n'.join(line('td', row) for row in rows)
        + '</table>\n</main></body></html>\n'
    )
