"""RUN/report.html of a ladder: IsoFLOP curves, the forecast, and how good it was."""

import numpy as np

from gptjax.eval.report import charts
from gptjax.eval.report.charts import Series
from gptjax.eval.report.templates import render
from gptjax.tune import iso_flop
from gptjax.tune.loss_table import describe_fit
from gptjax.tune.scaling_law import Law


def build_page(name: str, described: list[dict], scored: dict) -> str:
    """HTML of a ladder, `described` by its runs, and of its scored forecast."""
    law = Law(*(scored['law'][constant]['value'] for constant in Law._fields))
    curves = iso_flop.fit_curves(described)
    rows = [
        (
            f'{number:02}', f'{run["parameters"]:,}', f'{run["tokens"]:,}',
            f'{run["flops"]:.2e}', f'{run["loss"]:.4f}',
            f'{law.predict(run["parameters"], run["tokens"]) / run["loss"] - 1:+.2%}',
        )
        for number, run in enumerate(described)
    ]  # fmt: skip
    return render(
        'scaling.html.j2',
        **dict(name=name, scored=scored, rows=rows),
        constants=describe_fit(scored['law']),
        charts=[iso_flop_chart(curves), forecast_chart(described, curves, law, scored)],
        exponent=iso_flop.fit_exponent(curves),
        optimum=law.optimal_parameters(scored['run']['flops']),
    )  # fmt: skip


def iso_flop_chart(curves: list[iso_flop.IsoFlop]) -> str:
    """The loss by size, and a parabola for each budget."""
    series = []
    for curve in curves:
        sizes = np.geomspace(curve.points[0][0], curve.points[-1][0], 40)
        line = [(size / 1e6, curve.loss(size)) for size in sizes]
        points = [(size / 1e6, loss) for size, loss in curve.points]
        series += [Series('', 'points', points)]
        series += [Series(f'{curve.flops:.1e}', 'main', line)]
    return charts.line_chart(
        'Loss by size', 'nats a token', series, across='N / 1M', log_across=True,
        note='Each curve has the same training FLOPs, which stand at its end.',
    )  # fmt: skip


def forecast_chart(described, curves, law: Law, scored: dict) -> str:
    """The loss by FLOPs: the runs, the law, and the large run with its interval."""
    large, units = scored['run'], 1e12
    lowest = min(curve.flops for curve in curves)
    flops = np.geomspace(lowest, large['flops'], 60)
    # Along a straight line on logarithmic scales to the size of the large run.
    ratio = large['parameters'] / large['flops'] ** 0.5
    sizes = ratio * flops**0.5
    tokens = large['tokens'] * (flops / large['flops']) ** 0.5
    line = [*zip(flops / units, law.predict(sizes, tokens).tolist(), strict=True)]
    points = sorted((run['flops'] / units, run['loss']) for run in described)
    x = large['flops'] / units
    series = [
        Series('', 'points', points),
        Series('', 'main', line),
        Series('', 'main', [(x, end) for end in scored['interval']]),
        Series('forecast', 'main', [(x, scored['predicted'])]),
        Series('measured', 'validation', [(x, scored['measured'])]),
    ]
    return charts.line_chart(
        'Loss by FLOPs', 'nats a token', series, across='TFLOPs', log_across=True,
        note='The line has the tokens a parameter of the large run; the bar is the '
        f'{scored["level"]:.0%} interval.',
    )  # fmt: skip
