"""The fit finds the law that points were made from, and its intervals cover it."""

import os

import numpy as np
import pytest

from gptjax.core.console import UserError
from gptjax.eval.bootstrap import BootstrapSettings
from gptjax.tune.iso_flop import fit_curve, fit_exponent
from gptjax.tune.loss_table import describe_fit, read_table
from gptjax.tune.scaling_law import Law, Runs, fit_runs, forecast
from tests.test_main import error_of

HOFFMANN = Law(A=406.4, B=410.7, E=1.69, alpha=0.34, beta=0.28)
BESIROGLU = Law(A=482.0, B=2085.0, E=1.817, alpha=0.348, beta=0.366)
POINTS = 'GPTJAX_CHINCHILLA_POINTS'


def make_runs(law: Law, noise: float = 0.0, seed: int = 0) -> Runs:
    """Runs of nine budgets, seven sizes each, around 20 tokens a parameter."""
    flops = np.repeat(np.geomspace(6e18, 3e21, 9), 7)
    ratio = np.tile(np.geomspace(1 / 4, 4, 7), 9)
    parameters = np.sqrt(flops / 120) * ratio
    tokens = flops / 6 / parameters
    noise = np.exp(noise * np.random.default_rng(seed).normal(size=len(flops)))
    return Runs(parameters, tokens, law.predict(parameters, tokens) * noise)


@pytest.mark.parametrize('law', (HOFFMANN, BESIROGLU))
def test_points_of_a_law_give_it_back(law):
    fit = fit_runs(make_runs(law), BootstrapSettings(1, 0.95, 0))
    np.testing.assert_allclose(fit.law, law, rtol=1e-4)
    np.testing.assert_allclose(fit.residuals, 0, atol=1e-8)


def test_intervals_cover_the_law_and_a_larger_run():
    settings = BootstrapSettings(60, 0.99, 0)
    fit = fit_runs(make_runs(BESIROGLU, noise=0.003), settings)
    described = fit.describe(settings.level)
    for name, true in BESIROGLU._asdict().items():
        low, high = described[name]['interval']
        assert low < described[name]['value'] < high and low < true < high, name
    a = BESIROGLU.optimal_exponent()
    assert described['optimum']['interval'][0] < a < described['optimum']['interval'][1]
    # Of a run without noise, the interval narrows to the law.
    size, tokens = 7e10, 1.4e12
    predicted, (low, high) = forecast(fit, size, tokens, 0.99, 0)
    assert low < BESIROGLU.predict(size, tokens) < high < 1.05 * low
    exact = fit_runs(make_runs(BESIROGLU), settings)
    _, (low, high) = forecast(exact, size, tokens, 0.99, 0)
    assert high / low < 1.0001


def test_the_best_size():
    flops = 1e21
    sizes = np.geomspace(1e9, 1e10, 20_000)
    losses = HOFFMANN.predict(sizes, flops / 6 / sizes)
    best = HOFFMANN.optimal_parameters(flops)
    assert sizes[np.argmin(losses)] == pytest.approx(best, rel=1e-3)
    # Parabolas are close to it where their runs are close to the minimum.
    curves = []
    for flops in (1e20, 1e21, 1e22):
        sizes = HOFFMANN.optimal_parameters(flops) * np.geomspace(0.5, 2, 5)
        tokens = flops / 6 / sizes
        curves.append(fit_curve([flops] * 5, sizes, HOFFMANN.predict(sizes, tokens)))
    assert fit_exponent(curves) == pytest.approx(HOFFMANN.optimal_exponent(), abs=0.01)
    upwards = fit_curve([1e20] * 3, [1e8, 2e8, 4e8], [3.0, 2.9, 2.85])
    assert upwards.best is None and fit_exponent([upwards]) is None


@pytest.mark.skipif(
    POINTS not in os.environ,
    reason=f'the points read from the figure of Chinchilla are not ours to publish: '
    f'{POINTS} names a CSV file with parameters, training_flop and loss',
)
def test_points_of_chinchilla():
    runs = read_table(os.environ[POINTS], 5)
    law = fit_runs(runs, BootstrapSettings(1, 0.95, 0)).law
    assert len(runs.losses) == 240
    np.testing.assert_allclose(law[:3], (477.4, 2143.8, 1.8172), rtol=1e-3)
    np.testing.assert_allclose(law[3:], (0.3473, 0.3672), atol=1e-4)


GOOD = [f'{n}e8,{d}e9,{2 + 1 / n + 1 / d}' for n in (1, 2, 4) for d in (2, 4, 8)]


@pytest.mark.parametrize(
    'lines, message',
    (
        (None, 'No such file or directory: give a CSV file'),
        (['N,loss', '1,2'], 'no column of tokens (it has N, loss)'),
        (['N,D,error', '1,2,3'], 'no column of losses (it has N, D, error)'),
        (['N,D,loss', *GOOD, '1e9,1e9,-2'], 'line 11: loss=-2: use a positive number'),
        (['N,D,loss', *GOOD, '1e9,1e9'], 'line 11: loss=None: use a positive number'),
        (['N,D,loss', *GOOD, '1e9,many,3'], 'line 11: D=many: use a positive number'),
        (['N,D,loss', *GOOD[:7]], '7 runs cannot decide the five constants'),
        (['N,D,loss', *GOOD[:3] * 3], '1 different numbers of parameters cannot'),
        ([], 'no column of parameters'),
    ),
)
def test_tables_that_are_refused(lines, message, capsys, tmp_path):
    path = tmp_path / 'runs.csv'
    if lines is not None:
        path.write_text(''.join(f'{line}\n' for line in lines))
    assert message in error_of(capsys, 'scaling', f'--fit={path}')


def test_flags_of_a_table_that_are_refused(capsys, tmp_path):
    path = tmp_path / 'runs.csv'
    path.write_text('\n'.join(['N,D,loss', *GOOD]))
    error = error_of(capsys, 'scaling', f'--fit={path}', '--drop=9')
    assert '--drop=9: the table has 9 rows: use a number from 0 to 8' in error
    error = error_of(capsys, 'scaling', f'--fit={path}', f'--workdir={tmp_path}/x')
    assert '--workdir: --fit only reads a table' in error


def test_columns_by_flops(tmp_path):
    path = tmp_path / 'runs.csv'
    path.write_text('parameters, training_flop, loss\n2,24,5\n1,12,3\n3,1,9\n')
    runs = read_table(str(path), 1)
    np.testing.assert_array_equal(runs.tokens, [2, 2])
    np.testing.assert_array_equal(runs.losses, [3, 5])
    with pytest.raises(UserError, match='2 runs cannot decide'):
        fit_runs(runs, BootstrapSettings(1, 0.95, 0))


def test_an_interval_without_an_end():
    """The bootstrap of a ladder that is too short may give an infinite A."""
    [_, row] = describe_fit({'A': dict(value=3.0, interval=[1.0, None])})
    assert row == ('A', '3', '1 … ∞')
