"""RUN/overoptimization.html: proxy and gold reward over the square root of the KL."""

from html import escape
from pathlib import Path

from gptjax.eval.best_of import best_of_text, format_reward
from gptjax.eval.report import charts
from gptjax.eval.report.charts import Series
from gptjax.eval.report.tables import html_page, html_table, text_table


def overoptimization_text(results: dict) -> str:
    """The policy's points, for the screen, below those of best-of-n."""
    rows = [('PPO, step', 'KL, nats', 'proxy', 'gold')]
    for point in results['policy']:
        rows.append((str(point['step']), f'{point["kl"]:.2f}', *_reward_cells(point)))
    return f'{best_of_text(results)}\n\n{text_table(rows)}'


def build_page(name: str, results: dict) -> str:
    """One HTML page with both plots and the figures."""
    gold_unit = 'share of replies that the verifier finds right'
    if results['judge']:
        judge = Path(results['judge']).name
        gold_unit = f'what {judge}, another reward model, says'
    figures = ''.join(
        charts.line_chart(
            title,
            unit,
            [
                _make_series('best of n', 'validation', results['points'], reward),
                _make_series('PPO', 'main', results['policy'], reward),
            ],
            across='√KL',
        )
        for title, unit, reward in (
            ('Proxy', 'the reward that is optimised', 'proxy'),
            ('Gold', gold_unit, 'gold'),
        )
    )
    rows = [
        (f'{label} {point[key]:,}', f'{point["sqrt_kl"]:.2f}', *_reward_cells(point))
        for label, key, points in (
            ('best of', 'n', results['points']),
            ('PPO, step', 'step', results['policy']),
        )
        for point in points
    ]
    body = (
        f'<p class="kicker">gptjax run</p><h1>{escape(name)}: over-optimisation</h1>'
        f'<p class="lead">{_lead(results)}</p><div class="charts">{figures}</div>'
        f'<p class="soft">{results["problems"]:,} held-out problems; best of n from '
        f'{results["samples"]} replies to each, by the unbiased estimator, its KL '
        'ln n − (n − 1) / n, an upper bound where replies are equal; of PPO’s '
        'checkpoints the KL is measured on their own replies. '
        f'{results["bootstrap"]["level"]:.0%} intervals are over problems.</p>'
        f'{html_table(rows, ("", "√KL", "proxy", "gold"))}'
    )
    return html_page(f'{name} · over-optimisation', body)


def _reward_cells(point: dict) -> list[str]:
    return [format_reward(point[reward]) for reward in ('proxy', 'gold')]


def _make_series(label, css_class, points, reward):
    line = [(point['sqrt_kl'], point[reward]['value']) for point in points]
    return Series(label, css_class, sorted(line))


def _lead(results: dict) -> str:
    """Where each way has its most gold, and where it ends."""
    sentences = []
    ways = (('Best of n', results['points']), ('PPO', results['policy']))
    for label, points in ways:
        if not points:
            continue
        best = max(points, key=lambda point: point['gold']['value'])
        last = points[-1]
        start = f'{label} has its most gold, {best["gold"]["value"]:.3f}, at'
        if best is last:
            sentences.append(f'{start} its end, √KL {last["sqrt_kl"]:.2f}.')
            continue
        change = last['proxy']['value'] - best['proxy']['value']
        sentences.append(
            f'{start} √KL {best["sqrt_kl"]:.2f}; at its end, √KL '
            f'{last["sqrt_kl"]:.2f}, the proxy is {abs(change):.2f} '
            f'{"higher" if change >= 0 else "lower"} and gold is '
            f'{last["gold"]["value"]:.3f}.'
        )
    return ' '.join(sentences)
