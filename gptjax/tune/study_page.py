"""What a study has found: RUN/best.py, a config file, and RUN/report.html.

The page shows the best trial so far, how important each field was, the objective
against each field, and all trials.
"""

import math
import pprint
import warnings
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from gptjax.core import run_dir, storage
from gptjax.eval.report import charts
from gptjax.eval.report.charts import Series
from gptjax.eval.report.tables import format_short
from gptjax.eval.report.templates import render
from gptjax.tune.search_space import Dimension
from gptjax.tune.study import count_states
from gptjax.tune.trial_run import (
    CONFIG,
    OBJECTIVES,
    Options,
    describe_figures,
    describe_values,
)

TITLES = dict(
    loss=('Validation loss', 'nats a token'),
    bits_per_byte=('Validation', 'bits per byte'),
    tokens_per_second=('Throughput', 'tokens a second'),
)
BEST = '''\
"""The best of {number} trials of `{stage}`: {figures} (trial {trial:03}).

    {values}

python -m gptjax {stage} --config {path} --workdir NEW_RUN
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
{config}
    )
'''


def describe_study(study: optuna.Study, options: Options, workdir: Path) -> str:
    """Writes the config file and the page; returns lines about them.

    Without a complete trial it does nothing, and returns ''.
    """
    best = find_best(study, options)
    if best is None:
        return ''
    _write_best(study, options, workdir, best)
    write_page(study, options, workdir, best)
    figures = dict(zip(options.objectives, best.values, strict=True))
    return (
        f'best: trial {best.number:03} ({describe_values(_values(best, options))}): '
        f'{describe_figures(figures, options)}\n'
        f'Made: {workdir / "best.py"}\nMade: {workdir / "report.html"}'
    )


def find_best(study: optuna.Study, options: Options) -> FrozenTrial | None:
    """The complete trial with the best first objective; the earlier one of equals."""
    trials = [t for t in study.trials if t.state == TrialState.COMPLETE]
    sign = 1 if OBJECTIVES[options.objectives[0]] == 'minimize' else -1
    return min(trials, key=lambda t: (sign * t.values[0], t.number), default=None)


def _write_best(study, options, workdir, best) -> None:
    config = run_dir.from_json(best.user_attrs[CONFIG])
    lines = pprint.pformat(config.to_dict(), indent=1, width=80, sort_dicts=False)
    text = BEST.format(
        number=len(study.trials),
        stage=options.stage,
        figures=describe_figures(
            dict(zip(options.objectives, best.values, strict=True)), options
        ),
        trial=best.number,
        values=describe_values(_values(best, options)),
        path=workdir / 'best.py',
        config='\n'.join(f'        {line}' for line in lines.split('\n')),
    )
    storage.write_text(workdir / 'best.py', text)


def _values(trial: FrozenTrial, options: Options) -> dict:
    return {d.field: trial.params[d.field] for d in options.dimensions}


def write_page(study, options, workdir, best) -> None:
    """Writes RUN/report.html."""
    trials = study.trials
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    best_figures = dict(zip(options.objectives, best.values, strict=True))
    several = len(options.objectives) > 1
    front = {trial.number for trial in study.best_trials} if several else set()
    page = render(
        'study.html.j2',
        **dict(workdir=workdir, options=options, best=best, counts=count_states(study)),
        best_figures=describe_figures(best_figures, options),
        values=_values(best, options).items(),
        importances=measure_importances(study, options, complete),
        histories=[
            history_chart(place, name, complete)
            for place, name in enumerate(options.objectives)
        ],
        slices=[
            slice_chart(place, name, dimension, complete)
            for place, name in enumerate(options.objectives)
            for dimension in options.dimensions
        ],
        rows=[_row(trial, options, front) for trial in trials],
    )
    storage.write_text(workdir / 'report.html', page)


def measure_importances(study, options, complete) -> dict[str, list]:
    """By objective, [field, importance, CSS class] for bars.

    PED-ANOVA (Watanabe et al. 2023): how far the best tenth of the trials has other
    values of the field than all trials. It needs ten complete trials to say anything.
    """
    if len(complete) < 10:
        return {}
    found = {}
    for place, name in enumerate(options.objectives):
        # The evaluator takes the least values for the best.
        sign = 1 if OBJECTIVES[name] == 'minimize' else -1
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # it warns of what the line above says
            shares = optuna.importance.get_param_importances(
                study,
                evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                target=lambda t, place=place, sign=sign: sign * t.values[place],
            )
        if all(map(math.isfinite, shares.values())):
            found[name] = [(field, share, 'main') for field, share in shares.items()]
    return found


def history_chart(place: int, name: str, complete: list[FrozenTrial]) -> str:
    """The objective of each trial, and the best so far."""
    points = [(t.number, t.values[place]) for t in complete]
    better = min if OBJECTIVES[name] == 'minimize' else max
    best, line = None, []
    for number, value in points:
        best = value if best is None else better(best, value)
        line.append((number, best))
    title, unit = TITLES[name]
    return charts.line_chart(
        title, unit, [Series('', 'points', points), Series('best', 'main', line)],
        across='trial', note='Each point is a complete trial.',
    )  # fmt: skip


def slice_chart(
    place: int, name: str, dimension: Dimension, complete: list[FrozenTrial]
) -> str:
    """The objective against one field; texts stand in the order of their choices."""
    values = [t.params[dimension.field] for t in complete]
    note, across = '', 'value'  # the title has the name of the field
    keys = [*dimension.choices()] if dimension.kind == 'choice' else []
    if any(type(key) not in (int, float) for key in keys):
        note = ', '.join(f'{i}: {key}' for i, key in enumerate(keys))
        values = [keys.index(value) for value in values]
    elif dimension.kind.startswith('log'):
        values, across = [math.log10(value) for value in values], 'log₁₀'
    points = sorted(zip(values, (t.values[place] for t in complete), strict=True))
    title, unit = TITLES[name]
    return charts.line_chart(
        f'{title} by {dimension.field}', unit, [Series('', 'points', points)],
        across=across, note=note,
    )  # fmt: skip


def _row(trial: FrozenTrial, options: Options, front: set[int]) -> dict:
    """The cells of a trial in the table of trials; `front`: the Pareto front."""
    values = [format_short(value) for value in trial.values or ()]
    params = [trial.params.get(d.field, '–') for d in options.dimensions]
    return dict(
        number=f'{trial.number:03}',
        state='on the front' if trial.number in front else trial.state.name.lower(),
        values=[*values, *['–'] * (len(options.objectives) - len(values))],
        params=[f'{p:.4g}' if isinstance(p, float) else str(p) for p in params],
        seconds=trial.duration and round(trial.duration.total_seconds()),
        error=trial.user_attrs.get('error', ''),
    )
