"""A forecast of the loss of a large run, made in advance from a ladder, then scored.

    RUN/ladder.json      the config and the runs of the ladder; see ladder.py
    RUN/runs/00, 01, …   ordinary runs, which `report`, `eval` and `sample` read
    RUN/forecast.json    written before the large run begins, and kept
    RUN/runs/large       the run of the config itself
    RUN/report.html      see scaling_page.py

The forecast is dated and says by hashes of which ladder and config it is. Once it is
written, only `measured` and what follows from it is added.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gptjax.core import run_dir, storage
from gptjax.core.console import UserError
from gptjax.eval.bootstrap import BootstrapSettings
from gptjax.train.metrics import read_metrics
from gptjax.tune import iso_flop, scaling_page
from gptjax.tune.ladder import Rung, make_large, train_run
from gptjax.tune.scaling_law import Runs, fit_runs, forecast
from gptjax.tune.trial_run import Training

# Of ln L; seeds alone move a short run by more than the 1e-3 of Hoffmann et al., with
# which five of the few runs of a ladder would be met exactly.
DELTA = 1e-2
NEEDED = ('predicted', 'interval', 'ladder', 'law', 'level', 'baseline')


def forecast_and_score(
    config: ConfigDict,
    rungs: Sequence[Rung],
    losses: Sequence[float],
    workdir: Path,
    training: Training,
) -> dict | None:
    """Writes the forecast unless it is there, trains the large run, and compares.

    Returns None, or the summary of the large run if a signal ended it.
    """
    path, large, folder = workdir / 'forecast.json', make_large(config), _large(workdir)
    described = [
        dict(rung._asdict(), loss=loss)
        for rung, loss in zip(rungs, losses, strict=True)
    ]
    ladder = storage.fingerprint(described)
    made = read_forecast(path)
    if made is None:
        if read_metrics(folder / 'metrics.jsonl'):
            raise UserError(
                f'{folder} was trained without a forecast, which is made in advance: '
                f'bring {path} back from a copy, or use another --workdir'
            )
        made = make_forecast(config, described, large)
        storage.write_json(path, dict(made, ladder=ladder))
    elif made['ladder'] != ladder:
        raise UserError(
            f'{path} was made from other losses than those in {workdir}/runs: bring '
            'them back from a copy, or use another --workdir'
        )
    print(describe_forecast(made, path))
    measured, summary = train_run(large, folder, training)
    if summary:
        return summary
    scored = score(storage.read_json(path), measured)
    storage.write_json(path, scored)
    page = workdir / 'report.html'
    storage.write_text(page, scaling_page.build_page(workdir.name, described, scored))
    print(describe_score(scored))
    print(f'Made: {page}')
    return None


def _large(workdir: Path) -> Path:
    return workdir / 'runs' / 'large'


def read_forecast(path: Path) -> dict | None:
    """The forecast that was made; None if there is none. UserError if it is damaged."""
    if not path.exists():
        return None
    made = storage.parse_undamaged(path.read_bytes())
    if made is None or not made.keys() >= {*NEEDED}:
        raise UserError(
            f'{path} is damaged: bring it back from a copy, or use another --workdir'
        )
    return made


def make_forecast(config: ConfigDict, described: list[dict], large: Rung) -> dict:
    """The law of the ladder, and what it says about the large run, as JSON values."""
    settings = BootstrapSettings.of(config.eval)
    names = ('parameters', 'tokens', 'loss')
    runs = Runs(*(np.array([float(run[name]) for run in described]) for name in names))
    fit = fit_runs(runs, settings, DELTA)
    predicted, interval = forecast(
        fit, large.parameters, large.tokens, settings.level, settings.seed
    )
    lowest = iso_flop.extrapolate_lowest(iso_flop.fit_curves(described), large.flops)
    return dict(
        predicted=predicted,
        interval=interval,
        level=settings.level,
        made=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        config=storage.fingerprint(run_dir.to_json(config)),
        run=dict(
            parameters=large.parameters,
            tokens=large.tokens,
            flops=large.flops,
            times_the_largest=large.flops / max(run['flops'] for run in described),
        ),
        law=fit.describe(settings.level),
        residual=float(np.std(fit.residuals)),
        baseline=lowest,
    )


def score(made: dict, measured: float) -> dict:
    """The forecast with the loss that was measured."""
    low, high = made['interval']
    return made | dict(
        measured=measured,
        inside=low <= measured <= high,
        error=made['predicted'] / measured - 1,
        baseline_error=made['baseline'] / measured - 1,
    )


def describe_forecast(made: dict, path: Path) -> str:
    run, (low, high) = made['run'], made['interval']
    return (
        f'forecast of {made["made"]} for {run["parameters"] / 1e6:.3f}M parameters and '
        f'{run["tokens"] / 1e6:.3f}M tokens, {run["times_the_largest"]:.1f} times the '
        f'FLOPs of the largest run of the ladder:\n'
        f'loss {made["predicted"]:.4f} ({low:.4f} to {high:.4f}, {made["level"]:.0%} '
        f'interval), written to {path}'
    )


def describe_score(scored: dict) -> str:
    place = 'inside' if scored['inside'] else 'OUTSIDE'
    return (
        f'measured: loss {scored["measured"]:.4f}, {place} the interval; the forecast '
        f'is off by {scored["error"]:+.2%}, a line through the lowest losses '
        f'({scored["baseline"]:.4f}) by {scored["baseline_error"]:+.2%}'
    )
