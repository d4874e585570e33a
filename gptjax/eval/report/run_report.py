"""RUN/report.html: one page that shows a run and needs nothing else to open.

It is put together from what the stages left in the run directory. The page names each
file that is missing, with the command that makes it.
"""

from html import escape
from pathlib import Path

from gptjax.core import storage
from gptjax.eval.report import charts, post_training_tables, provenance
from gptjax.eval.report.charts import Series, number
from gptjax.eval.report.provenance import missing
from gptjax.eval.report.tables import (
    figure_rows,
    format_interval,
    format_number,
    html_page,
    html_table,
)
from gptjax.train.metrics import read_metrics

BASELINES = {  # the best to beat first
    'xz_given_train': 'xz -9e, given training text',
    'xz': 'xz -9e alone',
    'token_unigram': 'token frequencies',
    'byte_unigram': 'byte frequencies',
}


def write_report(workdir: Path) -> Path:
    """Writes RUN/report.html from the files in RUN; returns its path."""
    run = read_run(workdir)
    sections = [_header(run), _results_section(run), _tasks_section(run)]
    if run['ratings']:
        sections.append(post_training_tables.ratings_section(run['ratings']))
        if run['rewards']:
            sections.append(post_training_tables.reward_section(run['rewards']))
    sections += [
        _training_section(run),
        post_training_tables.transcripts_section(run['transcripts']),
        _samples_section(run),
        *provenance.sections(run),
    ]
    path = workdir / 'report.html'
    storage.write_text(path, html_page(f'{run["name"]} · gptjax', '\n'.join(sections)))
    return path


def read_run(workdir: Path) -> dict:
    """The files that the page shows, as one dict; None for a file that is missing."""
    files = dict(
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
        prepared='prepared/manifest.json',
    )
    paths = {name: workdir / file for name, file in files.items()}
    return dict(
        {n: storage.read_json(p) if p.exists() else None for n, p in paths.items()},
        name=workdir.name,
        metrics=read_metrics(workdir / 'metrics.jsonl'),
    )


# ---- sections


def _header(run):
    evaluation = run['evaluation']
    lead, facts = post_training_tables.dialogue_lead(evaluation)
    if not lead and run['ratings'] and run['rewards']:
        sentence = post_training_tables.verdict(run['rewards'])
        lead = f'{escape(sentence[0].upper() + sentence[1:])}.'
    if evaluation and 'results' in evaluation:
        results = evaluation['results']
        bits = format_number(results['bits_per_byte'])
        lead = (
            f'<b>{bits} bits per byte</b> on {results["documents"]:,} documents '
            f'that it was not trained on{_compare_with_xz(evaluation)}.'
        )
        facts.append(('bits per byte', bits))
        facts.append(('loss, nats a token', format_number(results['loss'])))
    train = _points(run, 'train', 'loss')
    if train:
        facts.append(('updates', f'{train[-1][0]:,}'))
        tokens, seconds, rates = (
            [value for _, value in _points(run, 'train', name)]
            for name in ('tokens', 'step_seconds', 'tokens_per_second')
        )
        if tokens:
            facts.append(('tokens trained on', number(sum(tokens))))
        if sum(seconds):
            facts.append(('training time', _duration(sum(seconds))))
        if rates:
            facts.append(('tokens a second', number(sorted(rates)[len(rates) // 2])))
    cells = ''.join(f'<div><dt>{k}</dt><dd>{v}</dd></div>' for k, v in facts)
    return (
        f'<p class="kicker">gptjax run</p><h1>{escape(run["name"])}</h1>'
        f'<p class="lead">{lead or "This run has not been evaluated yet."}</p>'
        f'<dl class="facts">{cells}</dl>'
    )


def _compare_with_xz(evaluation):
    """', 24% fewer than …', with the baseline where there is one."""
    baseline = _baselines(evaluation).get('xz_given_train')
    bits = evaluation['results']['bits_per_byte']
    if not baseline or bits is None:
        return ''
    change = bits / baseline - 1
    return (
        f', {abs(change):.0%} {"fewer" if change < 0 else "more"} than '
        f'<code>xz -9e</code> needs with the training text at hand ({baseline:.3f})'
    )


def _results_section(run):
    """Held-out perplexity, by source, and its baselines."""
    evaluation = run['evaluation']
    if run['ratings']:  # a reward model predicts no text
        return ''
    if not evaluation:
        return '<h2>Results</h2>' + missing('There is no eval.json', 'eval')
    if 'results' not in evaluation:  # it has no text of its own
        return ''
    results, baselines = evaluation['results'], _baselines(evaluation)
    bits = results['bits_per_byte']  # None: infinite
    bars = [] if bits is None else [('this model', bits, 'main')]
    bars += [(BASELINES.get(n, n), value, 'baseline') for n, value in baselines.items()]
    rows = [_results_row('this model', results)]
    if len(results.get('by_source', {})) > 1:
        for source, part in results['by_source'].items():
            rows.append(_results_row(f'on {source}', part))
    heading = (
        *('', 'bits per byte', 'loss,\nnats a token', 'perplexity\nof a token'),
        *('perplexity\nof a word', 'documents', 'tokens', 'bytes'),
    )
    step = evaluation.get('checkpoint_step')
    checkpoint = '' if step is None else f' of step {step:,}'
    html = (
        '<h2>Results</h2><p>Bits per byte of the validation documents’ UTF-8 text; '
        f'lower is better. The checkpoint{checkpoint} read whole documents in windows '
        f'of {results["context"]} tokens, moved by {results["stride"]}: every token is '
        'predicted once, ends of documents included.</p>'
        + charts.bar_chart(sorted(bars, key=lambda bar: bar[1]))
        + html_table(rows, heading, highlighted='this model')
    )
    if not baselines:
        return html + missing('There are no baselines', 'eval')
    about = (evaluation.get('baselines') or {}).get('about', {})
    baseline_rows = [
        (
            (BASELINES.get(name, name), about.get(name, '')),
            f'{value:.3f}',
            f'{value / bits:.2f}×' if bits else '–',
        )
        for name, value in baselines.items()
    ]
    heading = ('', 'bits per byte', 'times the model’s')
    return (
        f'{html}<h3>Baselines, on the same documents</h3>'
        f'{html_table(baseline_rows, heading)}'
    )


def _results_row(name, part):
    token, word = part['token_perplexity'], part['word_perplexity']  # None: infinite
    interval = format_interval(part.get('intervals', {}).get('bits_per_byte'))
    return (
        name,
        (format_number(part['bits_per_byte']), interval),
        format_number(part['loss']),
        '–' if token is None else f'{token:.2f}',
        '–' if word is None else number(word),
        *(f'{part[count]:,}' for count in ('documents', 'tokens', 'bytes')),
    )


def _tasks_section(run):
    """The other tasks of the evaluation; '' where perplexity is all."""
    tasks = (run['evaluation'] or {}).get('tasks', {})
    rows = []
    for *cells, baselines in figure_rows(
        {name: task for name, task in tasks.items() if name != 'perplexity'}
    ):
        texts = [f'{format_number(b["value"])} {n}' for n, b in baselines.items()]
        rows.append((*cells, ('', ' · '.join(texts))))
    if not rows:
        return ''
    heading = ('task', 'figure', 'value', 'interval', 'beside it')
    return (
        '<h2>Tasks</h2><p>Each figure with its bootstrap interval, and what costs '
        f'nothing beside it.</p>{html_table(rows, heading)}'
    )


def _training_section(run):
    """Charts of the metrics over the steps."""
    loss = _points(run, 'train', 'loss')
    if not loss:
        return '<h2>Training</h2>' + missing('There is no metrics.jsonl', 'pretrain')
    validation = _points(run, 'validation', 'loss')
    validation_bits = _points(run, 'validation', 'bits_per_byte')
    window = max(1, len(loss) // 50) | 1

    def quiet(name):
        return Series('', 'quiet', charts.thin(_points(run, 'train', name)))

    def smooth(name, scale=1):
        averages = charts.moving_average(_points(run, 'train', name), window)
        return [(x, scale * y) for x, y in charts.thin(averages)]

    def loss_axis(values):
        # The fall of the first updates would flatten the rest: it may leave the chart.
        later = [y for x, y in smooth('loss') if x > loss[-1][0] / 20]
        top = max(later + [y for _, y in validation])
        return charts.linear_axis([value for value in values if value <= top])

    note = (
        f'Training: the mean over {window} updates, and each one behind it. The first '
        'may be above the chart.'
    )
    figures = [
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
                for name, bits in _baselines(run['evaluation'] or {}).items()
                if name.startswith('xz')
            ],
            note='On packed examples, which cut documents; the result above is over '
            'whole ones.',
        ),
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
            note='Attention counted in full, and causal: its lower half alone.',
        ),
    ]
    note = ''
    skipped = _points(run, 'train', 'skipped')
    if skipped and skipped[-1][1]:
        count = f'{skipped[-1][1]:.0f}'
        note = f'<p>Updates skipped because they were not finite: {count}.</p>'
    return f'<h2>Training</h2>{note}<div class="charts">{"".join(figures)}</div>'


def _samples_section(run):
    if run['ratings']:  # a reward model writes nothing
        return ''
    if not run['samples']:
        return '<h2>Samples</h2>' + missing('There is no samples.json', 'sample')
    html = ''
    for sample in run['samples']:
        prompt = sample['prompt']
        text = sample['text'].removeprefix(prompt)
        settings = ', '.join(
            f'{name.replace("_", " ")} {value}'
            for name, value in sample.items()
            if name not in ('prompt', 'text') and isinstance(value, int | float | str)
        )
        html += (
            f'<div class="sample"><p><mark>{escape(prompt)}</mark>{escape(text)}</p>'
            f'<small>{escape(settings)}</small></div>'
        )
    return (
        '<h2>Samples</h2><p class="soft">Prompts in colour; what follows is the '
        f'model’s. Not chosen by hand.</p>{html}'
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


def _duration(seconds):
    if seconds < 120:
        return f'{seconds:.0f} <small>s</small>'
    if seconds < 7200:
        return f'{seconds / 60:.1f} <small>min</small>'
    return f'{seconds / 3600:.1f} <small>h</small>'
