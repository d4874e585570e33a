"""RUN/overoptimization.html: proxy and gold reward over the square root of the KL."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from gptjax.eval import best_of, results
from gptjax.eval.report import charts
from gptjax.eval.report.charts import Series


def peak(points: Sequence[dict]) -> dict:
    """The point with the most gold."""
    return max(points, key=lambda point: point['gold']['value'])


def table(found: dict) -> str:
    """The policy's points, for the screen, below those of best-of-n."""
    rows = [['PPO, step', 'KL, nats', 'proxy', 'gold']]
    for point in found['policy']:
        rows.append(
            [
                str(point['step']),
                f'{point["kl"]:.2f}',
                *(best_of.figure_text(point[name]) for name in ('proxy', 'gold')),
            ]
        )
    return f'{best_of.table(found)}\n\n{results.columns_text(rows)}'


def page(name: str, found: dict) -> str:
    """One HTML page with both plots and the figures."""
    style = Path(__file__).with_name('report.css').read_text(encoding='utf-8')
    figures = ''.join(
        charts.line_chart(
            title,
            unit,
            [
                _series('best of n', 'validation', found['points'], reward),
                _series('PPO', 'main', found['policy'], reward),
            ],
            across='√KL',
        )
        for title, unit, reward in (
            ('Proxy', 'the reward that is optimised', 'proxy'),
            ('Gold', _gold(found), 'gold'),
        )
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(name)} · over-optimisation</title><style>\n{style}</style>'
        '</head>\n<body><main><p class="kicker">gptjax run</p>'
        f'<h1>{escape(name)}: over-optimisation</h1>'
        f'<p class="lead">{_lead(found)}</p><div class="charts">{figures}</div>'
        f'<p class="soft">{_about(found)}</p>{_rows(found)}</main></body></html>\n'
    )


def _series(label, style, points, reward):
    line = [(point['sqrt_kl'], point[reward]['value']) for point in points]
    return Series(label, style, sorted(line))


def _gold(found):
    if found['judge']:
        return f'what {Path(found["judge"]).name}, another reward model, says'
    return 'share of replies that the verifier finds right'


def _lead(found):
    told = []
    for label, points in (('Best of n', found['points']), ('PPO', found['policy'])):
        if not points:
            continue
        best, last = peak(points), points[-1]
        gold = f'{label} has its most gold, {best["gold"]["value"]:.3f}, at'
        if best is last:
            told.append(f'{gold} its end, √KL {last["sqrt_kl"]:.2f}.')
            continue
        change = last['proxy']['value'] - best['proxy']['value']
        told.append(
            f'{gold} √KL {best["sqrt_kl"]:.2f}; at its end, √KL {last["sqrt_kl"]:.2f}, '
            f'the proxy is {abs(change):.2f} {"higher" if change >= 0 else "lower"} '
            f'and gold is {last["gold"]["value"]:.3f}.'
        )
    return ' '.join(told)


def _about(found):
    return (
        f'{found["problems"]:,} held-out problems; best of n from {found["samples"]} '
        'replies to each, by the unbiased estimator, its KL ln n − (n − 1) / n, an '
        'upper bound where replies are equal; of PPO’s checkpoints the KL is measured '
        f'on their own replies. {found["bootstrap"]["level"]:.0%} intervals are over '
        'problems.'
    )


def _rows(found):
    body = ''
    for label, key, points in (
        ('best of', 'n', found['points']),
        ('PPO, step', 'step', found['policy']),
    ):
        for point in points:
            cells = [f'{label} {point[key]:,}', f'{point["sqrt_kl"]:.2f}']
            cells += [best_of.figure_text(point[name]) for name in ('proxy', 'gold')]
            body += '<tr>' + ''.join(f'<td>{cell}</td>' for cell in cells) + '</tr>'
    return (
        '<div class="wide"><table><tr><th></th><th>√KL</th><th>proxy</th>'
        f'<th>gold</th></tr>{body}</table></div>'
    )
