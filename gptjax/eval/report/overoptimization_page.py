"""RUN/overoptimization.html: proxy and gold reward over the square root of the KL."""

from pathlib import Path

from gptjax.eval.best_of import format_reward, print_best_of
from gptjax.eval.report import charts
from gptjax.eval.report.charts import Series
from gptjax.eval.report.tables import print_table
from gptjax.eval.report.templates import render


def print_overoptimization(results: dict) -> None:
    """Prints the points of best of n, then those of the policy."""
    rows = [('PPO, step', 'KL, nats', 'proxy', 'gold')]
    for point in results['policy']:
        rows.append((str(point['step']), f'{point["kl"]:.2f}', *_reward_cells(point)))
    print_best_of(results)
    print()
    print_table(rows)


def build_page(name: str, results: dict) -> str:
    """HTML of the charts of both rewards and a table of the points."""
    gold_unit = 'share of replies that the verifier finds right'
    if results['judge']:
        gold_unit = f'mean score of {Path(results["judge"]).name}, another reward model'
    figures = [
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
    ]
    rows = [
        (f'{label} {point[key]:,}', f'{point["sqrt_kl"]:.2f}', *_reward_cells(point))
        for label, key, points in (
            ('best of', 'n', results['points']),
            ('PPO, step', 'step', results['policy']),
        )
        for point in points
    ]
    return render(
        'overoptimization.html.j2',
        **results,
        name=name,
        lead=_lead(results),
        charts=figures,
        rows=rows,
    )


def _reward_cells(point: dict) -> list[str]:
    return [format_reward(point[reward]) for reward in ('proxy', 'gold')]


def _make_series(label, css_class, points, reward):
    line = [(point['sqrt_kl'], point[reward]['value']) for point in points]
    return Series(label, css_class, sorted(line))


def _lead(results: dict) -> str:
    """The highest gold reward of best of n and of PPO, and that of the last point."""
    sentences = []
    for label, points in (('Best of n', results['points']), ('PPO', results['policy'])):
        if not points:
            continue
        best = max(points, key=lambda point: point['gold']['value'])
        last = points[-1]
        start = f'{label}: gold is highest, {best["gold"]["value"]:.3f}, at'
        if best is last:
            sentences.append(f'{start} the last point, √KL {last["sqrt_kl"]:.2f}.')
            continue
        change = last['proxy']['value'] - best['proxy']['value']
        sentences.append(
            f'{start} √KL {best["sqrt_kl"]:.2f}; at the last point, √KL '
            f'{last["sqrt_kl"]:.2f}, the proxy is {abs(change):.2f} '
            f'{"higher" if change >= 0 else "lower"} and gold is '
            f'{last["gold"]["value"]:.3f}.'
        )
    return ' '.join(sentences)
