"""How a reward model and its data are told of: on the screen and in the report."""

from collections.abc import Mapping
from html import escape

from gptjax.data.rating_audit import rows_of
from gptjax.eval.results import between, columns_text, short

MODEL = 'reward model'


# ---- on the screen


def table(found: Mapping) -> str:
    """What was found, for the screen."""
    level = found['bootstrap']['level']
    groups = [g for g, count in found['pairs'].items() if count]
    heading = ['']
    for group in groups:
        heading += [f'{group} ({found["pairs"][group]:,})', 'model ahead by']
    rows = [heading]
    for name in found['accuracy']['all']:
        row = [name]
        for group in groups:
            figure = found['accuracy'][group][name]
            row += [_text(figure), _text(figure['ahead']) if 'ahead' in figure else '']
        rows.append(row)
    if 'spearman' in found:
        rows[0].append('rank correlation')
        for row in rows[1:]:
            row.append(_text(found['spearman'][row[0]]))
    return '\n'.join(
        [
            f'Accuracy on pairs of {found["conversations"]["test"]:,} held-out '
            f'conversations, {found["target"]}, step {found["checkpoint_step"]:,}; '
            f'{level:.0%} intervals over conversations',
            columns_text(rows),
            calibration_text(found['calibration']),
            verdict(found),
        ]
    )


def verdict(found: Mapping) -> str:
    """What the figures say of the model against its best baseline, in a sentence."""
    told = []
    for group, figures in found['accuracy'].items():
        if group == 'unread' or not found['pairs'][group]:
            continue
        others = {name: its for name, its in figures.items() if name != MODEL}
        best = max(others, key=lambda name: others[name]['value'])
        low, high = others[best]['ahead']['interval']
        how = 'not clearly different from'
        if low is None:  # there are too few pairs for an interval
            continue
        if low > 0:
            how = 'better than'
        elif high < 0:
            how = 'worse than'
        told.append(f'on {group} pairs it is {how} {best}')
    return f'the reward model: {"; ".join(told)}'


def calibration_text(found: Mapping) -> str:
    """The calibration in a line."""
    if 'slope' in found:
        slope = short(found['slope'])
        return f'calibration: ratings grow by {slope} where the score grows by one'
    bins = ', '.join(
        f'{row["said"]:.2f} is {row["true"]:.2f} ({row["count"]:,})'
        for row in found['bins']
    )
    error = found['expected_calibration_error']
    return f'calibration: said {bins}; off by {error:.3f} on average'


def _text(figure):
    return short(figure['value']) + between(figure['interval'])


# ---- in the report


def lead(run: dict) -> str:
    """The page's first sentence; '' without a reward model's results."""
    if not run['ratings'] or not run['rewards']:
        return ''
    found = verdict(run['rewards'])
    return f'{escape(found[0].upper() + found[1:])}.'


def sections(run: dict) -> list[str]:
    """HTML of the audit and the results; nothing where RUN trains no reward model."""
    if not run['ratings']:
        return []
    rewards = run['rewards']
    return [_data(run['ratings']), *([_results(rewards)] if rewards else [])]


def _data(manifest: Mapping) -> str:
    splits = ''.join(
        f'<tr><td>{escape(name)}</td><td>{its["items"]:,}</td><td>{its["pairs"]:,}</td>'
        f'<td>{its["equal_pairs"]:,}</td></tr>'
        for name, its in manifest['splits'].items()
    )
    text = (
        '<h2>Ratings</h2><div class="wide"><table><tr><th></th><th>conversations</th>'
        f'<th>pairs</th><th>equal, skipped</th></tr>{splits}</table></div>'
    )
    audit = manifest.get('audit')
    if not audit:
        return text
    rows = ''.join(
        f'<tr><td>{escape(told)}</td><td>{audit[name]:,}</td></tr>'
        for name, told in rows_of(audit)
    )
    length = ', '.join(
        f'{value:.3f} by {name}'
        for name, value in audit['pair_accuracy_of_length'].items()
    )
    return (
        f'{text}<h3>What they are worth</h3><div class="wide"><table>{rows}</table>'
        f'</div><p>Of all usable pairs length alone tells {escape(length)}.</p>'
    )


def _results(found: Mapping) -> str:
    groups = [group for group, count in found['pairs'].items() if count]
    head = ''.join(
        f'<th>{escape(group)} pairs<br>({found["pairs"][group]:,})</th>'
        for group in groups
    )
    rank = '<th>rank<br>correlation</th>' if 'spearman' in found else ''
    rows = ''
    for name in found['accuracy'][groups[0]]:
        cells = ''.join(_cell(found['accuracy'][group][name], name) for group in groups)
        if 'spearman' in found:
            cells += _cell(found['spearman'][name], name)
        style = 'main' if name == MODEL else ''
        rows += f'<tr class="{style}"><td>{escape(name)}</td>{cells}</tr>'
    return (
        f'<h2>Reward model</h2><p>How often the better of two held-out conversations '
        f'has the higher score, by {escape(found["target"])}; pairs of equal length '
        'differ by a tenth at most. Intervals are over conversations, as pairs share '
        f'them. In short: {escape(verdict(found))}.</p>'
        f'<div class="wide"><table><tr><th></th>{head}{rank}</tr>{rows}</table></div>'
        f'<p class="soft">{escape(calibration_text(found["calibration"]))}.</p>'
    )


def _cell(figure: Mapping, name: str) -> str:
    about = between(figure['interval'])
    if 'ahead' in figure:
        ahead = figure['ahead']
        about += f'; the model is ahead by {short(ahead["value"])}'
        about += between(ahead['interval'])
    return (
        f'<td>{short(figure["value"])}<span class="about">{escape(about)}</span></td>'
    )
