"""`report RUN RUN2 … --to FILE.html`: several runs in one page, side by side.

`run_comparison.html.j2` shows their curves in the same charts, final figures and their
differences from the first run, and of configs, data and environments what differs.
"""

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from gptjax.core import run_dir, storage
from gptjax.core.console import UserError
from gptjax.eval.compare import compare_task
from gptjax.eval.model_facts import DATA_SETS, manifest_sources
from gptjax.eval.report import charts, provenance
from gptjax.eval.report.charts import Series
from gptjax.eval.report.run_cost import Cost, format_seconds, measure_cost
from gptjax.eval.report.tables import (
    FIGURES_OF_KIND,
    format_interval,
    format_number,
    format_short,
    label_of,
)
from gptjax.eval.report.templates import render
from gptjax.train.checkpoint import why_unfinished
from gptjax.train.metrics import read_metrics

MAX_RUNS = 8  # as many as there are colours
MISSING = '–'  # a run that has no such field
LOSS_NOTE = 'The first updates may be above the chart.'
# (title, unit, split, metric, axis) of each chart.
CHARTS = (
    ('Training loss', 'nats a token', 'train', 'loss', charts.linear_axis),
    ('Validation loss', 'nats a token', 'validation', 'loss', charts.linear_axis),
    ('Validation', 'bits per byte', 'validation', 'bits_per_byte', charts.linear_axis),
    ('Reward of rollouts', 'mean', 'train', 'reward', charts.linear_axis),
    ('Reward, greedy', 'validation', 'validation', 'reward', charts.linear_axis),
    ('KL from the reference', 'nats a reply', 'train', 'kl', charts.linear_axis),
    ('Length of replies', 'tokens', 'train', 'response_length', charts.linear_axis),
    (
        *('Learning rate', 'peak × schedule', 'train', 'learning_rate'),
        charts.linear_axis_from_zero,
    ),
    ('Gradient norm', 'before clipping', 'train', 'grad_norm', charts.log_axis),
    (
        *('Throughput', 'tokens a second', 'train', 'tokens_per_second'),
        charts.linear_axis_from_zero,
    ),
)
MANIFESTS = ('documents', 'dialogue', 'ratings', 'pairs', 'prepared')


class Run(NamedTuple):
    """A finished run, and its letter on the page."""

    letter: str
    folder: Path
    config: ConfigDict
    metrics: list[dict]
    evaluation: dict
    environment: dict
    cost: Cost

    @property
    def name(self) -> str:
        return f'{self.letter} {self.folder.name}'


def write_comparison(folders: Sequence[Path], target: Path, watts: float) -> None:
    """Writes the page.

    Args:
        watts: the power of the machine, for the energy of runs without a measurement.

    Raises:
        UserError: a folder is no run, or its training is not finished.
    """
    runs = read_runs(folders)
    fields = different_rows([dict(_fields(run.config)) for run in runs])
    page = render(
        'run_comparison.html.j2',
        runs=runs,
        stage_of=provenance.stage_of,
        tasks=compare_figures(runs),
        charts=[chart for chart in (_chart(runs, *c) for c in CHARTS) if chart],
        config_rows=[row for row in fields if MISSING not in row],
        other_rows=[row for row in fields if MISSING in row],
        data_rows=_data_rows(runs),
        prompts=shared_texts([_samples(run) for run in runs]),
        conversations=shared_texts([_transcripts(run) for run in runs]),
        cost_rows=_cost_rows(runs, watts),
        watts=watts,
        environment_rows=different_rows([_environment(run) for run in runs]),
        commands=[provenance.commands(run.environment) for run in runs],
    )
    storage.write_text(target, page)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs; UserError for one that is no run, not finished, or named twice."""
    if not 2 <= len(folders) <= MAX_RUNS:
        raise UserError(
            f'report compares 2 to {MAX_RUNS} runs, and {len(folders)} are named: '
            'report RUN RUN2 … --to FILE.html'
        )
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError('report: a run is named twice: name different runs')
    runs = []
    for letter, folder in zip(string.ascii_uppercase, folders, strict=False):
        config = run_dir.read_config(folder)
        if why := why_unfinished(folder):
            raise UserError(
                f'{why}: run the command that trains it again, or leave it out'
            )
        runs.append(
            Run(
                letter,
                folder,
                config,
                read_metrics(folder / 'metrics.jsonl'),
                storage.read_undamaged(folder / 'eval.json') or {},
                storage.read_undamaged(folder / 'environment.json') or {},
                measure_cost(config, folder),
            )
        )
    return runs


# ---- figures


def compare_figures(runs: Sequence[Run]) -> list[dict]:
    """For each task: name, about, rows of cells, and notes.

    A row has the figure of each run, and of all but the first run the difference from
    the first one, where both were evaluated on the same examples.
    """
    tasks = {}
    for run in runs:
        for name, result in run.evaluation.get('tasks', {}).items():
            tasks.setdefault(name, result)
    return [_compare_one(name, result, runs) for name, result in tasks.items()]


def _compare_one(task: str, shape: Mapping, runs: Sequence[Run]) -> dict:
    results = [run.evaluation.get('tasks', {}).get(task) for run in runs]
    first, *others = runs
    differences, notes = [], []
    for run, result in zip(others, results[1:], strict=True):
        difference = {}
        if results[0] is None or result is None:
            lacking = first if results[0] is None else run
            notes.append(f'{lacking.name} was not evaluated on this task.')
        elif 'items' not in result or 'items' not in results[0]:
            notes.append(f'{run.name} − {first.name}: there are no single examples.')
        else:
            pair = [first.evaluation, run.evaluation]
            try:
                difference = compare_task(task, first.name, run.name, *pair)
            except UserError as error:
                reason = str(error).removeprefix('--compare: ')
                notes.append(f'{run.name} − {first.name} is not computed: {reason}.')
            settings = results[0].get('settings', {}), result.get('settings', {})
            notes += [
                f'{name} is {settings[0].get(name)} in {first.name} and '
                f'{settings[1].get(name)} in {run.name}.'
                for name in sorted({*settings[0], *settings[1]})
                if settings[0].get(name) != settings[1].get(name)
            ]
        differences.append(difference)
    names = FIGURES_OF_KIND.get(shape['kind']) or [
        figure for figure in shape['figures'] if '/' not in figure
    ]
    rows = []
    for name in names:
        figures = [(r or {}).get('figures', {}).get(name) for r in results]
        if any(figures):
            cells = [_label(name, figures), *map(_figure_cell, figures)]
            rows.append(cells + [_difference_cell(d.get(name)) for d in differences])
    heading = ['', *(run.name for run in runs)]
    heading += [f'{run.letter} − {first.letter}' for run in others]
    level = shape['bootstrap']['level']
    return dict(
        name=task,
        about=shape.get('about', ''),
        heading=heading,
        rows=rows,
        notes=list(dict.fromkeys(notes)),
        level=f'{level:.0%}',
    )


def _label(name, figures) -> list[str]:
    baselines = next(filter(None, figures)).get('baselines', {})
    chance = [
        f'{format_number(figure["value"])} {label}'
        for label, figure in baselines.items()
        if not label.endswith(', before')  # another run
    ]
    return [label_of(name), ' · '.join(chance)]


def _figure_cell(figure) -> list[str]:
    if figure is None:
        return ['–', '']
    interval = format_interval(figure.get('interval')).strip(' ()')
    return [format_number(figure['value']), interval]


def _difference_cell(difference) -> list[str]:
    if difference is None or difference['difference'] is None:
        return ['–', '']
    interval = format_interval(difference['interval']).strip(' ()')
    p = difference['p']
    note = interval + ('' if p is None else f'\np = {p:.3f}')
    return [f'{difference["difference"]:+.3f}', note]


# ---- curves


def _chart(runs, title, unit, split, metric, axis) -> str:
    """HTML of a chart with a line for each run; '' if no run has the metric."""
    lines = []
    for number, run in enumerate(runs):
        points = [
            (record['step'], record[metric])
            for record in run.metrics
            if record['split'] == split and record.get(metric) is not None
        ]
        if split == 'train' and metric != 'learning_rate':
            window = max(1, len(points) // 50) | 1
            averages = charts.moving_average(points, window)
            # The last ones are means of few updates, and their noise is no difference.
            points = averages[: len(averages) - window // 2]
        points = charts.thin(points)
        lines.append(Series(run.letter, f'run{number}', points))
    is_loss = (split, metric) == ('train', 'loss')

    def make_axis(values):
        # The loss of the first updates is so high that the rest would look flat.
        drawn = [line.points for line in lines if line.points]
        top = max(y for line in drawn for x, y in line if x >= line[-1][0] / 20)
        return axis([value for value in values if value <= top])

    return charts.line_chart(
        title,
        unit,
        lines,
        make_axis=make_axis if is_loss else axis,
        note=LOSS_NOTE if is_loss else '',
    )


# ---- what differs


def different_rows(columns: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """[field, value of each run] of the fields whose values are not all equal."""
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [
        [name, *(column.get(name, MISSING) for column in columns)] for name in names
    ]
    return [row for row in rows if len({*row[1:]}) > 1]


def _fields(config: ConfigDict) -> list[tuple[str, str]]:
    return sorted(provenance.flatten(run_dir.to_json(config)))


def _environment(run: Run) -> dict[str, str]:
    kept = {k: v for k, v in run.environment.items() if k not in ('command', 'config')}
    return dict(provenance.flatten(kept))


def _data_rows(runs: Sequence[Run]) -> list[list]:
    """[data, cell of each run]: the sources, and the hashes of data and tokenizer."""
    columns = []
    for run in runs:
        cells = {}
        for name in MANIFESTS:
            manifest = storage.read_undamaged(run.folder / name / 'manifest.json')
            if not manifest:
                continue
            sources = manifest_sources(run.folder / name) if name in DATA_SETS else []
            for source in sources:
                about = [source.version, source.licence or 'licence not stated']
                amount = '–' if source.amount is None else f'{source.amount:,}'
                text = f'{amount} {source.unit}'
                cells[f'{name}: {source.name}'] = [text, ', '.join(filter(None, about))]
            for split, counts in manifest.get('splits', {}).items():
                if 'documents' in counts:
                    text = f'{counts["documents"]:,} documents'
                    size = f'{counts.get("bytes", 0):,} bytes'
                    cells[f'{name}: {split}'] = [text, size]
            digest = manifest.get('fingerprint') or manifest.get('inputs', '')
            cells[f'{name}: hash'] = [digest[:12], '']
        tokenizer = storage.read_undamaged(run.folder / 'tokenizer/manifest.json') or {}
        if 'sha256' in tokenizer:
            size = f'{tokenizer.get("vocab_size", 0):,} tokens'
            cells['tokenizer: hash'] = [tokenizer['sha256'][:12], size]
        columns.append(cells)
    names = dict.fromkeys(name for cells in columns for name in cells)
    return [
        [name, *(cells.get(name, ['–', '']) for cells in columns)] for name in names
    ]


# ---- texts


def _samples(run: Run) -> dict[str, tuple]:
    """{prompt: (prompt as messages, reply, settings)} of RUN/samples.json."""
    samples = storage.read_undamaged(run.folder / 'samples.json', list) or []
    texts = {}
    for sample in samples:
        reply = sample['text'].removeprefix(sample['prompt'])
        settings = ', '.join(
            f'{name.replace("_", " ")} {value}'
            for name, value in sample.items()
            if name not in ('prompt', 'text')
        )
        texts[sample['prompt']] = [('', sample['prompt'])], reply, settings
    return texts


def _transcripts(run: Run) -> dict[str, tuple]:
    """The same of the held-out conversations that `eval` drew, with greedy replies."""
    path = run.folder / 'samples/dialogue.json'
    texts = {}
    for transcript in storage.read_undamaged(path, list) or []:
        reply = transcript['replies'].get('this model', {}).get('reply')
        messages = [(m['role'], m['content']) for m in transcript['messages']]
        if reply is not None:
            texts[str(messages)] = messages, reply, 'likeliest'
    return texts


def shared_texts(columns: Sequence[Mapping[str, tuple]]) -> list[dict]:
    """The prompts that at least two runs have replied to, with each run's reply."""
    names = dict.fromkeys(name for column in columns for name in column)
    shared = []
    for name in names:
        replies = [column.get(name) for column in columns]
        known = [reply for reply in replies if reply]
        if len(known) > 1:
            shared.append(dict(messages=known[0][0], replies=replies))
    return shared


# ---- cost


def _cost_rows(runs: Sequence[Run], watts: float) -> list[list]:
    rows = [
        ['updates'],
        ['training time'],
        ['tokens trained on'],
        ['FLOPs'],
        ['energy'],
    ]
    for cost in (run.cost for run in runs):
        cells = [
            [f'{cost.updates:,}', ''],
            [format_seconds(cost.seconds), ''],
            ['–' if cost.tokens is None else format_short(cost.tokens), ''],
            ['–' if cost.flops is None else f'{cost.flops:.3g}', ''],
            energy_cell(cost, watts),
        ]
        for row, cell in zip(rows, cells, strict=True):
            row.append(cell)
    return rows


def energy_cell(cost: Cost, watts: float) -> list[str]:
    """Watt-hours, measured or estimated, and which of the two it is."""
    if cost.joules is not None:
        return [f'{cost.joules / 3600:.3g} Wh', 'measured (RAPL)']
    if not cost.seconds:
        return ['–', '']
    estimated = cost.seconds * watts / 3600
    return [f'{estimated:.3g} Wh', f'estimated: time × {watts:g} W']
