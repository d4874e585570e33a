"""The stage `lr_range`: the learning-rate range test (Smith 2017, arXiv 1506.01186).

One short run, in which the learning rates rise exponentially from 1/1000 of those of
the config to 100 times them:

    factor(s) = 10^(-3 + 5 s / (N - 1)),    s = 0 … N - 1,    N = train.num_steps

It ends early when the loss is no longer finite, or has lost half of what it had gained.

    RUN/lr_range.json    learning rate and loss of each step, and the suggested factor
    RUN/lr_range.html    the loss against the learning rate
"""

import itertools
import math
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from gptjax.core import storage
from gptjax.core.console import UserError, progress_bar
from gptjax.data.dataloader import training_batches
from gptjax.data.packed_dataset import PackedDataset
from gptjax.eval.report import charts
from gptjax.eval.report.charts import Series
from gptjax.eval.report.templates import render
from gptjax.train.short_run import make_short_run

LOWEST, HIGHEST = -3.0, 2.0  # powers of ten, of the factor
LEAST_STEPS = 50
SMOOTHING = 20  # the mean of N / 20 steps


def check_steps(config: ConfigDict) -> None:
    """Raises UserError for too few steps."""
    if config.train.num_steps < LEAST_STEPS:
        raise UserError(
            f'train.num_steps={config.train.num_steps}: a range test needs some steps '
            f'for each learning rate: use at least {LEAST_STEPS}, better 200'
        )


def run_range(config: ConfigDict, workdir: Path) -> dict:
    """Trains, writes RUN/lr_range.json and the page, and returns the results."""
    batches = training_batches(
        PackedDataset(workdir / 'prepared', 'train'),
        config.seed,
        config.train.batch_size,
    )
    factors, losses = measure_losses(config, batches)
    results = describe_range(config, factors, losses)
    storage.write_json(workdir / 'lr_range.json', results)
    storage.write_text(workdir / 'lr_range.html', build_page(workdir.name, results))
    return results


def measure_losses(
    config: ConfigDict, batches: Iterable[dict]
) -> tuple[list[float], list[float]]:
    """(factors, training losses) of the steps until the end, or until it diverges."""
    config = config.copy_and_resolve_references()
    config.optim.update(dict(schedule='constant', warmup_steps=0))
    N = config.train.num_steps
    power = lambda step: LOWEST + (HIGHEST - LOWEST) * step / (N - 1)
    rising = optax.scale_by_schedule(lambda step: 10.0 ** power(step))
    run = make_short_run(config, lambda optimizer: optax.chain(optimizer, rising))
    with jax.set_mesh(run.mesh), progress_bar('range test', N, 'steps') as advance:
        state, losses = run.init(config.seed), []
        for batch in itertools.islice(batches, N):
            state, metrics = run.step(state, batch)
            losses.append(float(metrics['loss']))
            advance(1, f'loss {losses[-1]:.3f}')
            if has_diverged(losses, N):
                break
    return [10.0 ** power(step) for step in range(len(losses))], losses


def smooth(losses: list[float], num_steps: int) -> list[float]:
    """The mean of each loss and its neighbours, N / 20 of them."""
    window = max(1, num_steps // SMOOTHING)
    return [y for _, y in charts.moving_average([*enumerate(losses)], window)]


def has_diverged(losses: list[float], num_steps: int) -> bool:
    """Whether the loss is not finite, or the newest mean lost half of the gain.

    The loss has gained something when its mean is a twentieth lower than at first.
    """
    if not math.isfinite(losses[-1]):
        return True
    window = max(1, num_steps // SMOOTHING)
    if len(losses) < 2 * window:
        return False
    means = np.convolve(losses, np.ones(window) / window, 'valid')
    first, lowest, newest = means[0], min(means), means[-1]
    lost = lowest < 0.95 * first and newest > (first + lowest) / 2
    return bool(lost or newest > 1.5 * first)


def describe_range(config: ConfigDict, factors: list, losses: list) -> dict:
    """The JSON of the results; `suggested` has the fields of `optim` and values.

    It is where the mean of the losses falls fastest, by step and thus by the logarithm
    of the learning rate.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    smoothed = smooth(finite, config.train.num_steps)
    lowest = int(np.argmin(smoothed))
    reach = max(1, config.train.num_steps // SMOOTHING)
    falls = [
        smoothed[step - reach] - smoothed[step + reach]
        for step in range(reach, len(smoothed) - reach)
    ]
    suggested = factors[reach + int(np.argmax(falls))] if falls else factors[lowest]
    names = ['learning_rate', 'matrix_learning_rate'][
        : 1 + (config.optim.name == 'muon')
    ]
    return dict(
        suggested={name: suggested * config.optim[name] for name in names},
        lowest={name: factors[lowest] * config.optim[name] for name in names},
        diverged=has_diverged(losses, config.train.num_steps),
        learning_rate=[factor * config.optim.learning_rate for factor in factors],
        loss=finite,
        smoothed=smoothed,
    )


def build_page(name: str, results: dict) -> str:
    """HTML of the chart."""
    rates = [math.log10(rate) for rate in results['learning_rate']]
    line = lambda losses: [*zip(rates, losses, strict=False)]  # a NaN is left out
    suggested = math.log10(results['suggested']['learning_rate'])
    nearest = min(line(results['smoothed']), key=lambda p: abs(p[0] - suggested))
    chart = charts.line_chart(
        'Training loss', 'by log₁₀ of optim.learning_rate',
        [
            Series('', 'quiet', line(results['loss'])),
            Series('mean', 'main', line(results['smoothed'])),
            Series('suggested', 'points', [nearest]),
        ],
        across='log₁₀',
    )  # fmt: skip
    rows = [
        [field, f'{results["suggested"][field]:.3g}', f'{results["lowest"][field]:.3g}']
        for field in results['suggested']
    ]
    return render(
        'tuning.html.j2',
        title=f'{name}: learning-rate range test',
        charts=[chart],
        note='The learning rate rises in one run from 1/1000 of that of the config to '
        '100 times it, or until the loss diverges. The suggestion is where the mean '
        'of the losses falls fastest.',
        heading=['optim', 'suggested', 'at the lowest loss'],
        rows=rows,
    )
