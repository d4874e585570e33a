"""The stage `stages`: several runs in one table, each compared with its control.

    python -m gptjax stages --workdir runs sums_sft grpo=sums_more

`grpo=sums_more` compares runs/grpo with its control runs/sums_more. If a control has
the same start and the same compute, the difference is due to the stage; the table shows
the seconds of training of both. If each seed has a folder (runs/study/0/grpo,
runs/study/1/grpo), figures are means over the seeds, and the interval is their range.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.eval.compare import compare_task, read_evaluation
from gptjax.eval.report.tables import (
    FIGURES_OF_KIND,
    format_figure,
    format_interval,
    label_of,
    print_table,
)
from gptjax.eval.report.templates import render
from gptjax.eval.tasks import verifiable_replies
from gptjax.train.metrics import read_metrics


class Stage(NamedTuple):
    """A run: its name, a folder for each seed, and the name of its control."""

    name: str
    folders: list[Path]
    control: str | None


def write_stage_table(workdir: Path, words: Sequence[str]) -> dict:
    """Writes stages.json and stages.html into a folder of runs; prints the table.

    `words` are 'NAME' or 'NAME=CONTROL', in the order of the table. Returns {rows,
    seeds, level}; a row has task, figure, stage, seconds (of training), value,
    interval, and with a control: control, difference and difference_interval.
    """
    if not words:
        raise UserError('stages: name the runs, for example sums_sft grpo=sums_more')
    stages = [find_stage(workdir, word) for word in words]
    by_name = {stage.name: stage for stage in stages}
    for stage in stages:
        if stage.control and stage.control not in by_name:
            by_name[stage.control] = find_stage(workdir, stage.control)
    evaluations = {
        folder: read_evaluation(str(folder))
        for stage in by_name.values()
        for folder in stage.folders
    }
    rows = [row for s in stages for row in _stage_rows(s, by_name, evaluations)]
    if not rows:
        names = sorted({name for names in FIGURES_OF_KIND.values() for name in names})
        raise UserError(
            f'stages: no run was evaluated on {", ".join(names)}: run the stage '
            'eval with --tasks first'
        )
    figures = list(dict.fromkeys((row['task'], row['figure']) for row in rows))
    rows.sort(key=lambda row: figures.index((row['task'], row['figure'])))
    (level, *_) = {
        result['bootstrap']['level']
        for evaluation in evaluations.values()
        for result in _tabulated_tasks(evaluation).values()
    }
    skills = skill_rows(stages, evaluations)
    table = dict(rows=rows, skills=skills, seeds=len(stages[0].folders), level=level)
    storage.write_json(workdir / 'stages.json', table)
    heading, *cells = _table_cells(table)
    caption = (
        f'One seed; {level:.0%} bootstrap intervals over examples, paired for '
        'differences'
    )
    if table['seeds'] > 1:
        caption = (
            f'Means over {table["seeds"]} seeds (the lowest … the highest of them)'
        )
    skill_cells = _skill_cells(skills, [stage.name for stage in stages])
    page = render(
        'stages.html.j2',
        caption=caption,
        heading=heading,
        rows=cells,
        skills=skill_cells,
    )
    storage.write_text(workdir / 'stages.html', page)
    print(caption)
    print_table([heading, *cells])
    if skill_cells:
        print('\nSkills by stage')
        print_table(skill_cells)
    return table


def find_stage(workdir: Path, word: str) -> Stage:
    """The runs of 'NAME' or 'NAME=CONTROL': workdir/NAME, or workdir/SEED/NAME."""
    name, _, control = word.partition('=')
    folders = [workdir / name]
    if not folders[0].is_dir():
        folders = sorted(workdir.glob(f'*/{name}'))
    if not folders:
        raise UserError(
            f'stages: neither {workdir} nor a folder in it has a run {name}'
        )
    return Stage(name, folders, control or None)


def _stage_rows(
    stage: Stage, by_name: dict[str, Stage], evaluations: dict[Path, dict]
) -> list[dict]:
    """A row for each figure of each task that the stage was evaluated on."""
    rows = []
    seconds = fmean(map(seconds_trained, stage.folders))
    for task, first_result in _tabulated_tasks(evaluations[stage.folders[0]]).items():
        for folder in stage.folders:
            if task not in _tabulated_tasks(evaluations[folder]):
                raise _not_evaluated(folder, task, stage.folders[0])
        results = [evaluations[folder]['tasks'][task] for folder in stage.folders]
        for figure in FIGURES_OF_KIND[first_result['kind']]:
            if any(figure not in result['figures'] for result in results):
                continue  # the accuracies of very few conversations
            row = dict(task=task, figure=figure, stage=stage.name, seconds=seconds)
            row.update(_over_seeds([result['figures'][figure] for result in results]))
            if stage.control:
                control = by_name[stage.control]
                row.update(_compare(stage, control, task, figure, evaluations))
            rows.append(row)
    return rows


def skill_rows(stages: Sequence[Stage], evaluations: dict[Path, dict]) -> list[dict]:
    """Accuracies by skill: dicts of skill, figure, stage, value and interval.

    They are those of the stages that were evaluated on problems with skills.
    """
    rows = []
    for stage in stages:
        results = [evaluations[folder]['tasks'] for folder in stage.folders]
        if not all(verifiable_replies.NAME in tasks for tasks in results):
            continue
        figures = [tasks[verifiable_replies.NAME]['figures'] for tasks in results]
        for name in figures[0]:
            figure, _, skill = name.partition('/')
            if skill and all(name in its for its in figures):
                over_seeds = _over_seeds([its[name] for its in figures])
                rows.append(
                    dict(skill=skill, figure=figure, stage=stage.name, **over_seeds)
                )
    return rows


def _skill_cells(rows: Sequence[dict], stages: Sequence[str]) -> list[tuple[str, ...]]:
    """The heading and a row for each figure of each skill; a column for each stage."""
    if not rows:
        return []
    cells = {(r['skill'], r['figure'], r['stage']): format_figure(r) for r in rows}
    stages = [name for name in stages if any(key[2] == name for key in cells)]
    table = [('skill', 'figure', *stages)]
    for skill in sorted({row['skill'] for row in rows}):
        for figure in verifiable_replies.FIGURES_BY_SKILL:
            shown = [cells.get((skill, figure, stage), '') for stage in stages]
            is_first = figure == verifiable_replies.FIGURES_BY_SKILL[0]
            table.append((skill if is_first else '', label_of(figure), *shown))
    return table


def _not_evaluated(folder: Path, task: str, evaluated: Path) -> UserError:
    """The error for a run without a task that the run `evaluated` has."""
    name = task
    if task == 'dialogue' and not (folder / 'dialogue').is_dir():
        name = f'dialogue:{evaluated}'  # whose conversations
    return UserError(
        f'stages: {folder} was not evaluated on {task}: run `eval --workdir {folder} '
        f'--tasks {name}`'
    )


def seconds_trained(workdir: Path) -> float:
    """Seconds of a run's steps or rollouts, with the first compilation."""
    return sum(
        line['step_seconds']
        for line in read_metrics(workdir / 'metrics.jsonl')
        if line['split'] == 'train'
    )


def _tabulated_tasks(evaluation: dict) -> dict:
    return {
        name: result
        for name, result in evaluation['tasks'].items()
        if result['kind'] in FIGURES_OF_KIND
    }


def _over_seeds(figures: Sequence[dict]) -> dict:
    """{value, interval} of one seed, or the mean and range over several seeds.

    Both are None if a seed has no finite value.
    """
    if len(figures) == 1:
        return dict(value=figures[0]['value'], interval=figures[0]['interval'])
    values = [figure['value'] for figure in figures]
    if None in values:
        return dict(value=None, interval=None, values=values)
    return dict(value=fmean(values), interval=[min(values), max(values)], values=values)


def _compare(
    stage: Stage, control: Stage, task: str, figure: str, evaluations: dict[Path, dict]
) -> dict:
    """{control, difference, difference_interval}, computed for each seed."""
    seeds, control_seeds = (
        [f.parent.name for f in s.folders] if len(s.folders) > 1 else ['one']
        for s in (stage, control)
    )
    if seeds != control_seeds:
        raise UserError(
            f'stages: {stage.name} has the seeds {", ".join(seeds)} and its control '
            f'{control.name} {", ".join(control_seeds)}: run the missing ones'
        )
    differences = []
    for folder, control_folder in zip(stage.folders, control.folders, strict=True):
        pair = control_folder, folder
        if task not in evaluations[control_folder]['tasks']:
            raise _not_evaluated(control_folder, task, folder)
        compared = compare_task(task, *map(str, pair), *(evaluations[f] for f in pair))
        differences.append(dict(compared[figure], value=compared[figure]['difference']))
    overall = _over_seeds(differences)
    return dict(
        control=control.name,
        difference=overall['value'],
        difference_interval=overall['interval'],
    )


def _table_cells(table: dict) -> list[tuple[str, ...]]:
    """The heading and the rows; only the first row of a figure has its name."""
    rows = [('task', 'figure', 'stage', 'seconds', 'value', 'control', 'difference')]
    above = None
    for row in table['rows']:
        name = (row['task'], label_of(row['figure']))
        control = difference = ''
        if 'control' in row:
            control = row['control']
            difference = '–'
            if row['difference'] is not None:
                interval = format_interval(row['difference_interval'])
                difference = f'{row["difference"]:+.3f}{interval}'
        rows.append(
            (
                *(name if name != above else ('', '')),
                row['stage'],
                f'{row["seconds"]:,.0f}',
                format_figure(row),
                control,
                difference,
            )
        )
        above = name
    return rows
