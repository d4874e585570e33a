"""Tables of runs that were trained on conversations or on ratings of them.

The reward model's table is printed by its stage too; the rest is for the report.
"""

from collections.abc import Mapping
from html import escape

from gptjax.data.rating_audit import audit_labels
from gptjax.eval.report.tables import (
    format_figure,
    format_interval,
    format_number,
    html_table,
    text_table,
)

MODEL = 'reward model'
# What the manifest of RUN/dialogue counts, and the column's title.
DIALOGUE_COUNTS = dict(
    views='views',
    pieces='pieces',
    turns='replies',
    predicted_tokens='tokens trained on',
    cut_turns='replies cut',
    cut_tokens='tokens cut off them',
    cut_prompts='turns before them cut',
)


# ---- dialogue


def dialogue_lead(evaluation: Mapping | None) -> tuple[str, list[tuple[str, str]]]:
    """(the page's first sentence as HTML, facts); ('', []) without the figure."""
    result = ((evaluation or {}).get('tasks') or {}).get('dialogue')
    if not result:
        return '', []
    figure = result['figures']['reply_bits']
    earlier = [
        f'{format_number(baseline["value"])} of {escape(label)}'
        for label, baseline in figure.get('baselines', {}).items()
        if label.endswith(', before')
    ]
    baselines = f', beside {" and ".join(earlier)}' if earlier else ''
    value = format_number(figure['value'])
    sentence = (
        f'<b>{value} bits per byte</b> of replies in conversations that it was not '
        f'trained on{baselines}.'
    )
    return sentence, [('bits per byte of replies', value)]


def transcripts_section(transcripts: list[dict] | None) -> str:
    """Held-out conversations and the models' replies, as HTML; '' without any."""
    if not transcripts:
        return ''

    def paragraph(speaker, text):
        return f'<p><small>{escape(speaker)}</small><br>{text}</p>'

    html = ''
    for transcript in transcripts:
        html += '<div class="sample">'
        for message in transcript['messages']:
            html += paragraph(message['role'], escape(message['content']))
        html += paragraph('what the person answered', escape(transcript['reference']))
        for model, reply in transcript['replies'].items():
            for key, label in (('reply', 'likeliest'), ('drawn', 'temperature 1')):
                text = f'<mark>{escape(reply[key])}</mark>'
                html += paragraph(f'{model}, {label}', text)
        html += '</div>'
    return (
        '<h2>Transcripts</h2><p class="soft">Held-out conversations, chosen by chance, '
        f'and what follows them; replies of models in colour.</p>{html}'
    )


def dialogue_data_section(manifest: Mapping) -> str:
    """What RUN/dialogue holds, and what was left out of it, as HTML."""
    rows = [
        (split, source, *(f'{counts.get(name, 0):,}' for name in DIALOGUE_COUNTS))
        for split, sources in manifest['splits'].items()
        for source, counts in sources.items()
    ]
    table = html_table(rows, ('split', 'source', *DIALOGUE_COUNTS.values()))
    left_out = ''
    for name, source in manifest['sources'].items():
        skipped = ', '.join(f'{n:,} {why}' for why, n in source['skipped'].items())
        origin = escape(source.get('version') or source['path'])
        licence = escape(source['licence'] or '–')
        left_out += (
            f'<p>{escape(name)} ({origin}, {licence}): '
            f'{source["read"]["conversations"]:,} conversations read; left out '
            f'{escape(skipped.replace("_", " ") or "none")}.</p>'
        )
    return f'<h2>Data</h2>{table}{left_out}'


# ---- the reward model


def reward_text(evaluation: Mapping) -> str:
    """The evaluation of a reward model, for the screen."""
    groups = [group for group, count in evaluation['pairs'].items() if count]
    has_rank = 'spearman' in evaluation
    heading = ['']
    for group in groups:
        heading += [f'{group} ({evaluation["pairs"][group]:,})', 'model ahead by']
    rows = [heading + ['rank correlation'] * has_rank]
    for name in evaluation['accuracy']['all']:
        row = [name]
        for group in groups:
            figure = evaluation['accuracy'][group][name]
            ahead = format_figure(figure['ahead']) if 'ahead' in figure else ''
            row += [format_figure(figure), ahead]
        if has_rank:
            row.append(format_figure(evaluation['spearman'][name]))
        rows.append(row)
    return (
        f'Accuracy on pairs of {evaluation["conversations"]["test"]:,} held-out '
        f'conversations, {evaluation["target"]}, step '
        f'{evaluation["checkpoint_step"]:,}; '
        f'{evaluation["bootstrap"]["level"]:.0%} intervals over conversations\n'
        f'{text_table(rows)}\n{calibration_text(evaluation["calibration"])}\n'
        f'{verdict(evaluation)}'
    )


def verdict(evaluation: Mapping) -> str:
    """The reward model against its best baseline, in a sentence."""
    clauses = []
    for group, figures in evaluation['accuracy'].items():
        if group == 'unread' or not evaluation['pairs'][group]:
            continue
        baselines = {name: f for name, f in figures.items() if name != MODEL}
        best = max(baselines, key=lambda name: baselines[name]['value'])
        low, high = baselines[best]['ahead']['interval']
        if low is None:  # there are too few pairs for an interval
            continue
        comparison = 'not clearly different from'
        if low > 0:
            comparison = 'better than'
        elif high < 0:
            comparison = 'worse than'
        clauses.append(f'on {group} pairs it is {comparison} {best}')
    return f'the reward model: {"; ".join(clauses)}'


def calibration_text(calibration: Mapping) -> str:
    """The calibration in a line."""
    if 'slope' in calibration:
        slope = format_number(calibration['slope'])
        return f'calibration: ratings grow by {slope} where the score grows by one'
    bins = ', '.join(
        f'{row["said"]:.2f} is {row["true"]:.2f} ({row["count"]:,})'
        for row in calibration['bins']
    )
    error = calibration['expected_calibration_error']
    return f'calibration: said {bins}; off by {error:.3f} on average'


def ratings_section(manifest: Mapping) -> str:
    """What RUN/ratings holds, and what the ratings are worth, as HTML."""
    splits = [
        (name, *(f'{split[count]:,}' for count in ('items', 'pairs', 'equal_pairs')))
        for name, split in manifest['splits'].items()
    ]
    heading = ('', 'conversations', 'pairs', 'equal, skipped')
    html = f'<h2>Ratings</h2>{html_table(splits, heading)}'
    audit = manifest.get('audit')
    if not audit:
        return html
    counts = [(label, f'{audit[name]:,}') for name, label in audit_labels(audit)]
    length = ', '.join(
        f'{value:.3f} by {name}'
        for name, value in audit['pair_accuracy_of_length'].items()
    )
    return (
        f'{html}<h3>What they are worth</h3>{html_table(counts)}'
        f'<p>Of all usable pairs length alone tells {escape(length)}.</p>'
    )


def reward_section(evaluation: Mapping) -> str:
    """The evaluation of a reward model, as HTML."""
    groups = [group for group, count in evaluation['pairs'].items() if count]
    has_rank = 'spearman' in evaluation
    heading = ['', *(f'{g} pairs\n({evaluation["pairs"][g]:,})' for g in groups)]
    heading += ['rank\ncorrelation'] * has_rank
    rows = []
    for name in evaluation['accuracy'][groups[0]]:
        figures = [evaluation['accuracy'][group][name] for group in groups]
        if has_rank:
            figures.append(evaluation['spearman'][name])
        rows.append([name, *map(_figure_cell, figures)])
    return (
        f'<h2>Reward model</h2><p>How often the better of two held-out conversations '
        f'has the higher score, by {escape(evaluation["target"])}; pairs of equal '
        'length differ by a tenth at most. Intervals are over conversations, as pairs '
        f'share them. In short: {escape(verdict(evaluation))}.</p>'
        f'{html_table(rows, heading, highlighted=MODEL)}'
        f'<p class="soft">{escape(calibration_text(evaluation["calibration"]))}.</p>'
    )


def _figure_cell(figure: Mapping) -> tuple[str, str]:
    """The value, and below it the interval and by how much the model is ahead."""
    note = format_interval(figure['interval'])
    if 'ahead' in figure:
        note += f'; the model is ahead by {format_figure(figure["ahead"])}'
    return format_number(figure['value']), note
