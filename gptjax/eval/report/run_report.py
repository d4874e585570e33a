"""The stage `report`: RUN/report.html, one page that fetches nothing when opened.

`run_report.html.j2` shows what the stages wrote to the run directory. For a file that
is missing, the page names the command that writes it.
"""

from pathlib import Path

import numpy as np

from gptjax.core import storage
from gptjax.data.rating_audit import audit_labels
from gptjax.eval.report import charts, provenance, reward_tables
from gptjax.eval.report.charts import Series
from gptjax.eval.report.tables import figure_rows, format_number, format_short
from gptjax.eval.report.templates import render
from gptjax.train.metrics import read_metrics

FILES = dict(
    config='config.json',
    environment='environment.json',
    evaluation='eval.json',
    samples='samples.json',
    ratings='ratings/manifest.json',
    rewards='results.json',
    transcripts='samples/dialogue.json',
    dialogue='dialogue/manifest.json',
    documents='documents/manifest.json',
    tokenizer='tokenizer/manifest.json',
    imported='imported/manifest.json',
    prepared='prepared/manifest.json',
)
VALIDATIONS = 6  # whose replies the page shows
PROBLEM_REPLIES = 10
LISTS = ('samples', 'transcripts')  # the others are dicts
BASELINES = {  # the strongest first
    'xz_given_train': 'xz -9e, given training text',
    'xz': 'xz -9e alone',
    'token_unigram': 'token frequencies',
    'byte_unigram': 'byte frequencies',
}


def write_report(workdir: Path) -> Path:
    """Writes RUN/report.html from the files in RUN; returns its path."""
    run = {
        name: storage.read_undamaged(workdir / file, list if name in LISTS else dict)
        for name, file in FILES.items()
    }
    metrics = read_metrics(workdir / 'metrics.jsonl')
    evaluation = run['evaluation'] or {}
    results, tasks = evaluation.get('results'), evaluation.get('tasks') or {}
    bits = (evaluation.get('baselines') or {}).get('bits_per_byte', {})
    baselines = {name: bits[name] for name in BASELINES if name in bits} | bits
    if results:
        parts = [('this model', results)]
        by_source = results.get('by_source', {})
        if len(by_source) > 1:
            parts += [(f'on {source}', part) for source, part in by_source.items()]
        bars = [(BASELINES.get(n, n), b, 'baseline') for n, b in baselines.items()]
        if results['bits_per_byte'] is not None:  # it is finite
            bars.append(('this model', results['bits_per_byte'], 'main'))
        run.update(parts=parts, bars=bars, baseline_labels=BASELINES)
    skipped = _points(metrics, 'train', 'skipped')
    page = render(
        'run_report.html.j2',
        **run,
        name=workdir.name,
        results=results,
        tasks=tasks,
        baselines=baselines,
        facts=_facts(results, tasks, metrics),
        task_rows=_task_rows(tasks),
        charts=_training_charts(metrics, baselines),
        problem_replies=_problem_replies(tasks),
        validations=_read_validations(workdir / 'samples' / 'validation'),
        skipped=skipped[-1][1] if skipped else 0,
        audit_labels=audit_labels,
        provenance=provenance,
        reward_tables=reward_tables,
    )
    path = workdir / 'report.html'
    storage.write_text(path, page)
    return path


def _facts(results, tasks, metrics):
    """(label, value, unit) of each figure at the top of the page."""
    facts = []
    if 'dialogue' in tasks:
        reply_bits = tasks['dialogue']['figures']['reply_bits']['value']
        facts.append(('bits per byte of replies', format_number(reply_bits), ''))
    if results:
        facts.append(('bits per byte', format_number(results['bits_per_byte']), ''))
        facts.append(('loss, nats a token', format_number(results['loss']), ''))
    updates = _points(metrics, 'train', 'loss') or _points(metrics, 'train', 'reward')
    if not updates:
        return facts
    facts.append(('updates', f'{updates[-1][0]:,}', ''))
    tokens, seconds, rates = (
        [value for _, value in _points(metrics, 'train', name)]
        for name in ('tokens', 'step_seconds', 'tokens_per_second')
    )
    if tokens:
        facts.append(('tokens trained on', format_short(sum(tokens)), ''))
    total = sum(seconds)
    if total:
        duration = (f'{total / 3600:.1f}', 'h')
        if total < 7200:
            duration = (f'{total / 60:.1f}', 'min')
        if total < 120:
            duration = (f'{total:.0f}', 's')
        facts.append(('training time', *duration))
    if rates:
        median = sorted(rates)[len(rates) // 2]
        facts.append(('tokens a second', format_short(median), ''))
    return facts


def _read_validations(folder):
    """The replies of some validations: the first, the last, and others between."""
    paths = sorted(folder.glob('[0-9]*.json'))
    places = np.linspace(0, len(paths) - 1, min(VALIDATIONS, len(paths)))
    read = [storage.read_undamaged(paths[place]) for place in places.astype(int)]
    return [replies for replies in read if replies]


def _problem_replies(tasks):
    """The first held-out problems, which are in random order; older files lack them."""
    task = tasks.get('task', {})
    items = [item for item in task.get('items', []) if 'messages' in item]
    if not items:
        return []
    greedy = task['columns'].index('greedy')
    return [
        dict(item, is_right=item['statistics'][greedy] >= 1)
        for item in items[:PROBLEM_REPLIES]
    ]


def _task_rows(tasks):
    """The table of all tasks but perplexity, which has its own section."""
    tasks = {name: task for name, task in tasks.items() if name != 'perplexity'}
    rows = []
    for *cells, baselines in figure_rows(tasks):
        texts = [f'{format_number(b["value"])} {n}' for n, b in baselines.items()]
        rows.append((*cells, ('', ' · '.join(texts))))
    return rows


def _training_charts(metrics, baselines):
    """HTML of a chart for each metric; charts without values are ''."""
    loss = _points(metrics, 'train', 'loss')
    updates = loss or _points(metrics, 'train', 'reward')
    if not updates:
        return []
    validation = _points(metrics, 'validation', 'loss') if loss else []
    validation_bits = _points(metrics, 'validation', 'bits_per_byte')
    window = max(1, len(updates) // 50) | 1

    def quiet(name):
        return Series('', 'quiet', charts.thin(_points(metrics, 'train', name)))

    def smooth(name, scale=1):
        averages = charts.moving_average(_points(metrics, 'train', name), window)
        return [(x, scale * y) for x, y in charts.thin(averages)]

    def loss_axis(values):
        # The loss of the first updates is so high that the rest would look flat.
        later = [y for x, y in smooth('loss') if x > loss[-1][0] / 20]
        top = max(later + [y for _, y in validation])
        return charts.linear_axis([value for value in values if value <= top])

    note = (
        f'Training is the mean over {window} updates; the pale line shows every '
        'update. The first ones may be above the chart.'
    )
    return [
        charts.line_chart(
            'Loss',
            'nats a token',
            [
                quiet('loss'),
                Series('training', 'train', smooth('loss')),
                Series('validation', 'validation', validation),
            ],
            make_axis=loss_axis,
            note=note if window > 1 else '',
        ),
        charts.line_chart(
            'Validation',
            'bits per byte',
            [Series('model', 'validation', validation_bits)],
            levels=[
                (BASELINES[name].replace(', given training text', ' given train'), bits)
                for name, bits in baselines.items()
                if name.startswith('xz')
            ],
            note='On packed rows, which cut documents; the result above is over whole '
            'documents.',
        ),
        *_policy_charts(metrics),
        charts.line_chart(
            'Learning rate',
            'peak × schedule',
            [quiet('learning_rate')._replace(css_class='main')],
            make_axis=charts.linear_axis_from_zero,
        ),
        charts.line_chart(
            'Gradient norm',
            'global, before clipping',
            [quiet('grad_norm'), Series('', 'main', smooth('grad_norm'))],
            make_axis=charts.log_axis,
        ),
        charts.line_chart(
            'Throughput',
            'tokens a second',
            [Series('', 'main', smooth('tokens_per_second'))],
            make_axis=charts.linear_axis_from_zero,
        ),
        charts.line_chart(
            'Model FLOPs utilisation',
            'percent of the peak',
            [
                Series('full', 'main', smooth('mfu_full', scale=100)),
                Series('causal', 'validation', smooth('mfu_causal', scale=100)),
            ],
            make_axis=charts.linear_axis_from_zero,
            note='Full counts all of attention, causal the half that is not masked.',
        ),
    ]


def _policy_charts(metrics):
    """HTML of the charts of reinforcement learning; all are '' in other stages."""

    def chart(title, unit, name, note='', scale=1):
        sampled, greedy = (
            [(step, scale * value) for step, value in _points(metrics, split, name)]
            for split in ('train', 'validation')
        )
        series = [
            Series('rollouts', 'train', charts.thin(sampled)),
            Series('validation', 'validation', greedy),
        ]
        return charts.line_chart(title, unit, series, note=note)

    note = 'Replies of rollouts are sampled, those of the validation are greedy.'
    return [
        chart('Reward', 'mean of replies, without penalties', 'reward', note),
        chart('KL from the reference policy', 'nats a reply', 'kl'),
        chart('Length of replies', 'tokens', 'response_length'),
        chart('Truncated replies', 'percent', 'truncation_rate', scale=100),
    ]


def _points(metrics, split, name):
    """(step, value) of a metric, without the values that are not finite."""
    return [
        (record['step'], record[name])
        for record in metrics
        if record['split'] == split and record.get(name) is not None
    ]
