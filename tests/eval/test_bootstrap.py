"""Resamples, intervals and permutations; enumeration and textbooks give the values."""

import itertools
import math

import numpy as np
import pytest

from gptjax.eval import bootstrap
from gptjax.eval.bootstrap import BootstrapSettings


def ratio(sums):
    return sums['right'] / sums['items']


def columns_of(right):
    return dict(right=np.array(right, float), items=np.ones(len(right)))


@pytest.mark.parametrize('cells', (2**22, 50))
def test_every_resample_draws_as_many_items_as_there_are(cells, monkeypatch):
    monkeypatch.setattr(bootstrap, 'CELLS', cells)
    counts = np.concatenate([*bootstrap.resample_counts(7, 100, seed=3)])
    assert counts.shape == (100, 7) and (counts.sum(axis=1) == 7).all()
    # Each item is drawn once on average, and with probability (1 - 1/7)^7 never.
    assert counts.mean(axis=0) == pytest.approx(np.ones(7), abs=0.4)
    assert (counts == 0).mean() == pytest.approx((6 / 7) ** 7, abs=0.06)
    again, other = (
        np.concatenate([*bootstrap.resample_counts(7, 100, seed)]) for seed in (3, 4)
    )
    assert (again == counts).all() and (other != counts).any()


def test_sums_are_those_of_the_items_drawn():
    random = np.random.default_rng(0)
    columns = dict(a=random.normal(size=11), b=random.normal(size=11))
    sums = bootstrap.resample_sums(columns, 50, seed=5)
    counts = np.concatenate(list(bootstrap.resample_counts(11, 50, seed=5)))
    for row, drawn in enumerate(counts.astype(int)):
        items = np.repeat(np.arange(11), drawn)
        for name in columns:
            assert sums[name][row] == pytest.approx(columns[name][items].sum())


def test_an_interval_by_hand():
    samples = np.arange(101.0)
    for given in (samples, np.append(samples, np.nan)):
        assert bootstrap.compute_interval(given, 0.9) == pytest.approx([5, 95])
    assert np.isnan(bootstrap.compute_interval(np.array([np.nan]), 0.9)).all()


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(3, 2, size=400)
    settings = BootstrapSettings(4000, 0.95, 0)
    figure = bootstrap.compute_means(dict(right=values), settings)['right']
    assert figure['value'] == pytest.approx(values.mean())
    low, high = figure['interval']
    error = values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.12 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.12 * error)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """300 samples of a coin with 30% heads: 95% of them are 285."""
    random = np.random.default_rng(1)
    held = 0
    for seed in range(300):
        right = random.random(60) < 0.3
        settings = BootstrapSettings(300, 0.95, seed)
        figures = bootstrap.compute_figures(columns_of(right), {'r': ratio}, settings)
        low, high = figures['r']['interval']
        held += low <= 0.3 <= high
    assert 0.90 <= held / 300 <= 0.98


def test_the_same_system_twice_does_not_differ():
    columns = columns_of([1, 0, 1, 1, 0])
    assert bootstrap.compute_p_value(columns, columns, ratio, 100, 0) == 1
    samples = bootstrap.resample_differences(columns, columns, ratio, 100, 0)
    assert (samples == 0).all()


def test_the_p_value_is_that_of_all_permutations():
    first = np.array([0.1, 0.4, 0.3, 0.9, 0.2, 0.6, 0.5])
    second = np.array([0.3, 0.7, 0.2, 0.9, 0.6, 0.9, 0.8])
    differences = second - first
    observed = abs(differences.sum())
    signs = np.array(list(itertools.product((-1, 1), repeat=7)))
    exact = (abs(signs @ differences) >= observed - 1e-12).mean()
    pair = columns_of(first), columns_of(second)
    found = bootstrap.compute_p_value(*pair, ratio, 20_000, 0)
    assert 0.01 < exact < 0.2
    assert found == pytest.approx(exact, abs=0.01)


def test_a_system_that_is_always_better_is_significant():
    first, second = columns_of([0] * 20), columns_of([1] * 20)
    assert bootstrap.compute_p_value(first, second, ratio, 999, 0) == 0.001
    samples = bootstrap.resample_differences(first, second, ratio, 99, 0)
    assert (samples == 1).all()


def test_a_figure_without_a_value_is_no_significant_difference():
    nothing = dict(right=np.zeros(5), items=np.zeros(5))
    some = dict(right=np.ones(5), items=np.ones(5))
    of = bootstrap.mean_figure('right')
    for pair in ((nothing, nothing), (nothing, some)):
        assert np.isnan(bootstrap.compute_p_value(*pair, of, 100, 0))
    # One item decides whether there is a value: half the permutations have none.
    one = dict(right=np.array([1.0]), items=np.array([1.0]))
    other = dict(right=np.array([0.0]), items=np.array([1.0]))
    assert bootstrap.compute_p_value(one, other, of, 100, 0) == 1
