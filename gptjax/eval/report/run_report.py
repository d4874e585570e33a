"""RUN/report.html: one page that shows a run and needs nothing else to open.

It is put together from what the stages left in the run directory. What is missing is
said to be missing, with the command that makes it.
"""

from html import escape
from pathlib import Path

from gptjax.core import storage
from gptjax.eval.report import charts, dialogue_table, provenance, rating_table
from gptjax.eval.report.charts import Level, Series, number
from gptjax.eval.report.provenance import missing
from gptjax.eval.results import between, label_of, short
from gptjax.train.metrics import read_metrics

BASELINES = {  # the best to beat first
    'xz_given_train': 'xz -9e, given training text',
    'xz': 'xz -9e alone',
    'token_unigram': 'token frequencies',
    'byte_unigram': 'byte frequencies',
}


def write_report(workdir: Path) -> Path:
    """Writes RUN/report.html from what there is in RUN; returns its path."""
    run = read_run(workdir)
    sections = [
        _header(run),
        _results(run),
        _tasks(run),
        *rating_table.sections(run),
        _training(run),
        dialogue_table.transcripts(run),
        _samples(run),
        *provenance.sections(run),
    ]
    style = Path(__file__).with_name('report.css').read_text(encoding='utf-8')
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(run["name"])} · gptjax</title>'
        f'<style>\n{style}</style></head>\n<body><main>\n'
        + '\n'.join(sections)
        + '\n</main></body></html>\n'
    )
    path = workdir / 'report.html'
    storage.write_text(path, page)
    return path


def read_run(workdir: Path) -> dict:
    """All that the page shows, as one dict; None for a file that is not there."""

    def read(name):
        path = workdir / name
        return storage.read_json(path) if path.exists() else None

    return dict(
        name=workdir.name,
        config=read('config.json'),
        environment=read('environment.json'),
        evaluation=read('eval.json'),
        samples=read('samples.json'),
        ratings=read('ratings/manifest.json'),
        rewards=read('results.json'),
        transcripts=read('samples/dialogue.json'),
        dialogue=read('dialogue/manifest.json'),
        documents=read('documents/manifest.json'),
        tokenizer=read('tokenizer/manifest.json'),
        prepared=read('prepared/manifest.json'),
        metrics=read_metrics(workdir / 'metrics.jsonl'),
    )


# ---- sections


def _header(run):
    train = _points(run, 'train', 'loss')
    evaluation = run['evaluation']
    lead = 'This run has not been evaluated yet.'
    told, facts = dialogue_table.lead(evaluation)
    lead = told or rating_table.lead(run) or lead
    if evaluation and 'results' in evaluation:
        results = evaluation['results']
        bits = results['bits_per_byte']
        lead = (
            f'<b>{short(bits)} bits per byte</b> on {results["documents"]:,} documents '
            f'that it was not trained on{_against_xz(evaluation)}.'
        )
        facts.append(('bits per byte', short(bits)))
        facts.append(('loss, nats a token', short(results['loss'])))
    if train:
        facts.append(('updates', f'{train[-1][0]:,}'))
        tokens = [y for _, y in _points(run, 'train', 'tokens')]
        if tokens:
            facts.append(('tokens trained on', number(sum(tokens))))
        seconds = sum(y for _, y in _points(run, 'train', 'step_seconds'))
        if seconds:
            facts.append(('training time', _duration(seconds)))
        rates = sorted(y for _, y in _points(run, 'train', 'tokens_per_second'))
        if rates:
            facts.append(('tokens a second', number(rates[len(rates) // 2])))
    cells = ''.join(f'<div><dt>{k}</dt><dd>{v}</dd></div>' for k, v in facts)
    return (
        f'<p class="kicker">gptjax run</p><h1>{escape(run["name"])}</h1>'
        f'<p class="lead">{lead}</p><dl class="facts">{cells}</dl>'
    )


def _against_xz(evaluation):
    """', 24% fewer than …', with the baseline where there is one."""
    baseline = _baselines(evaluation).get('xz_given_train')
    bits = evaluation['results']['bits_per_byte']
    if not baseline or bits is None:
        return ''
    share = bits / baseline - 1
    words = 'fewer' if share < 0 else 'more'
    return (
        f', {abs(share):.0%} {words} than <code>xz -9e</code> needs '
        f'with the training text at hand ({baseline:.3f})'
    )


def _results(run):
    evaluation = run['evaluation']
    if run['ratings']:  # a reward model predicts no text
        return ''
    if not evaluation:
        return '<h2>Results</h2>' + missing('There is no eval.json', 'eval')
    if 'results' not in evaluation:  # it has no text of its own
        return ''
    results, baselines = evaluation['results'], _baselines(evaluation)
    about = (evaluation.get('baselines') or {}).get('about', {})
    bits = results['bits_per_byte']  # None: infinite
    bars = [] if bits is None else [('this model', bits, 'main')]
    bars += [
        (BASELINES.get(name, name), value, 'baseline')
        for name, value in baselines.items()
    ]
    bars.sort(key=lambda bar: bar[1])
    rows = [_result_row('this model', results, 'main')]
    if len(results.get('by_source', {})) > 1:
        rows += [
            _result_row(f'on {source}', part)
            for source, part in results['by_source'].items()
        ]
    others = ''.join(
        f'<tr><td>{escape(BASELINES.get(name, name))}'
        f'<span class="about">{escape(about.get(name, ""))}</span></td>'
        f'<td>{value:.3f}</td><td>{f"{value / bits:.2f}×" if bits else "–"}</td></tr>'
        for name, value in baselines.items()
    )
    step = evaluation.get('checkpoint_step')
    text = (
        f'<h2>Results</h2><p>Bits per byte of the validation documents’ UTF-8 text; '
        f'lower is better. {_how_evaluated(results, step)}</p>'
        + charts.bar_chart(bars)
        + '<div class="wide"><table><tr><th></th><th>bits per byte</th>'
        '<th>loss,<br>nats a token</th><th>perplexity<br>of a token</th>'
        '<th>perplexity<br>of a word</th><th>documents</th><th>tokens</th>'
        f'<th>bytes</th></tr>{"".join(rows)}</table></div>'
    )
    if not baselines:
        return text + missing('There are no baselines', 'eval')
    return (
        text + '<h3>Baselines, on the same documents</h3><div class="wide"><table>'
        '<tr><th></th><th>bits per byte</th><th>times the model’s</th></tr>'
        f'{others}</table></div>'
    )


def _result_row(name, part, style=''):
    interval = part.get('intervals', {}).get('bits_per_byte')
    token, word = part['token_perplexity'], part['word_perplexity']  # None: infinite
    return (
        f'<tr class="{style}"><td>{escape(name)}</td>'
        f'<td>{short(part["bits_per_byte"])}<span class="about">{between(interval)}'
        f'</span></td><td>{short(part["loss"])}</td>'
        f'<td>{"–" if token is None else f"{token:.2f}"}</td>'
        f'<td>{"–" if word is None else number(word)}</td>'
        f'<td>{part["documents"]:,}</td><td>{part["tokens"]:,}</td>'
        f'<td>{part["bytes"]:,}</td></tr>'
    )


def _how_evaluated(results, step):
    checkpoint = '' if step is None else f' of step {step:,}'
    return (
        f'The checkpoint{checkpoint} read whole documents in windows of '
        f'{results["context"]} tokens, moved by {results["stride"]}: every token is '
        'predicted once, ends of documents included.'
    )


def _tasks(run):
    """What else was evaluated; nothing where perplexity is all."""
    tasks = (run['evaluation'] or {}).get('tasks', {})
    rows = ''
    for name, task in tasks.items():
        if name == 'perplexity':
            continue
        for figure, found in task['figures'].items():
            beside = ' · '.join(
                f'{short(other["value"])} {label}'
                for label, other in found.get('baselines', {}).items()
            )
            rows += (
                f'<tr><td>{escape(name)}</td><td>{escape(label_of(figure))}</td>'
                f'<td>{short(found["value"])}</td>'
                f'<td>{between(found["interval"]).strip()}</td>'
                f'<td><span class="about">{escape(beside)}</span></td></tr>'
            )
            name = ''
    if not rows:
        return ''
    return (
        '<h2>Tasks</h2><p>Each figure with its bootstrap interval, and what costs '
        'nothing beside it.</p><div class="wide"><table><tr><th>task</th>'
        '<th>figure</th><th>value</th><th>interval</th><th>beside it</th></tr>'
        f'{rows}</table></div>'
    )


def _training(run):
    loss = _points(run, 'train', 'loss')
    if not loss:
        return '<h2>Training</h2>' + missing('There is no metrics.jsonl', 'pretrain')
    window = max(1, len(loss) // 50) | 1
    note = f'Training: the mean over {window} updates, and each one behind it. '
    note += 'The first may be above the chart.'
    levels = []
    if run['evaluation']:
        levels = [
            Level(BASELINES[name].replace(', given training text', ' given train'), v)
            for name, v in _baselines(run['evaluation']).items()
            if name.startswith('xz')
        ]

    def smooth(name):
        return charts.thin(charts.moving_average(_points(run, 'train', name), window))

    def loss_axis(values):
        # The fall of the first updates would flatten the rest: it may leave the chart.
        later = [y for x, y in smooth('loss') if x > loss[-1][0] / 20]
        top = max(later + [y for _, y in _points(run, 'validation', 'loss')])
        return charts.linear_axis([value for value in values if value <= top])

    figures = [
        charts.line_chart(
            'Loss',
            'nats a token',
            [
                Series('', 'quiet', charts.thin(loss)),
                Series('training', 'train', smooth('loss')),
                Series('validation', 'validation', _points(run, 'validation', 'loss')),
            ],
            make_axis=loss_axis,
            note=note if window > 1 else '',
        ),
        charts.line_chart(
            'Validation',
            'bits per byte',
            [
                Series(
                    'model', 'validation', _points(run, 'validation', 'bits_per_byte')
                )
            ],
            levels=levels,
            note='On packed examples, which cut documents; the result above is over '
            'whole ones.',
        ),
        charts.line_chart(
            'Learning rate',
            'peak × schedule',
            [Series('', 'main', charts.thin(_points(run, 'train', 'learning_rate')))],
            make_axis=charts.linear_axis_from_zero,
        ),
        charts.line_chart(
            'Gradient norm',
            'global, before clipping',
            [
                Series('', 'quiet', charts.thin(_points(run, 'train', 'grad_norm'))),
                Series('', 'main', smooth('grad_norm')),
            ],
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
                Series('full', 'main', _percent(smooth('mfu_full'))),
                Series('causal', 'validation', _percent(smooth('mfu_causal'))),
            ],
            make_axis=charts.linear_axis_from_zero,
            note='Attention counted in full, and causal: its lower half alone.',
        ),
    ]
    skipped = [y for _, y in _points(run, 'train', 'skipped')]
    said = ''
    if skipped and skipped[-1]:
        said = (
            f'<p>Updates skipped because they were not finite: {skipped[-1]:.0f}.</p>'
        )
    return f'<h2>Training</h2>{said}<div class="charts">{"".join(figures)}</div>'


def _samples(run):
    if run['ratings']:  # a reward model writes nothing
        return ''
    if not run['samples']:
        return '<h2>Samples</h2>' + missing('There is no samples.json', 'sample')
    parts = []
    for sample in run['samples']:
        prompt = sample['prompt']
        text = sample['text'].removeprefix(prompt)
        settings = ', '.join(
            f'{name.replace("_", " ")} {value}'
            for name, value in sample.items()
            if name not in ('prompt', 'text') and isinstance(value, int | float | str)
        )
        parts.append(
            f'<div class="sample"><p><mark>{escape(prompt)}</mark>{escape(text)}</p>'
            f'<small>{escape(settings)}</small></div>'
        )
    return (
        '<h2>Samples</h2><p class="soft">Prompts in colour; what follows is the '
        f'model’s. Not chosen by hand.</p>{"".join(parts)}'
    )


# ---- figures


def _points(run, split, name):
    """(step, value) of a metric; what was not finite is left out."""
    return [
        (record['step'], record[name])
        for record in run['metrics']
        if record['split'] == split and record.get(name) is not None
    ]


def _baselines(evaluation):
    """Bits per byte by name, in the order of BASELINES."""
    bits = (evaluation.get('baselines') or {}).get('bits_per_byte', {})
    first = {name: bits[name] for name in BASELINES if name in bits}
    return {**first, **bits}


def _percent(points):
    return [(x, 100 * y) for x, y in points]


def _duration(seconds):
    if seconds < 120:
        return f'{seconds:.0f} <small>s</small>'
    if seconds < 7200:
        return f'{seconds / 60:.1f} <small>min</small>'
    return f'{seconds / 3600:.1f} <small>h</small>'
