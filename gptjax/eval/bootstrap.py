"""Bootstrap intervals of figures, and paired tests of two systems.

A figure is a function of sums over items: accuracy is `right / items`, corpus BLEU is
a formula over summed n-gram counts. An item needs only a few statistics. A resample
(Efron 1979) is a row of counts times the matrix of statistics, so that a thousand
resamples are one matrix product. All figures of a task, and all systems on the same
items, share the resamples.

    columns = {'right': [1, 0, 1], 'items': [1, 1, 1]}       statistics of 3 items
    counts  = [[2, 0, 1], [0, 3, 0], …]                      (R, items)
    sums    = {'right': [3, 0, …], 'items': [3, 3, …]}       (R,)
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Columns = Mapping[str, np.ndarray]  # (N,) float64 each: a number for each item
Figure = Callable[[Columns], np.ndarray]  # sums (…) of the columns to values (…)

CELLS = 2**22  # the most counts in memory at once: 32 MB


class BootstrapSettings(NamedTuple):
    """The number of resamples, the share of them in an interval, and the seed."""

    resamples: int
    level: float
    seed: int

    @classmethod
    def of(cls, section) -> 'BootstrapSettings':
        """From the config's section `eval`."""
        return cls(section.resamples, section.level, section.seed)


# ---- figures with intervals, as JSON has them


def compute_figures(
    columns: Columns, figures: Mapping[str, Figure], settings: BootstrapSettings
) -> dict[str, dict]:
    """{name: {value, interval}} of all figures, from the same resamples."""
    sums = sum_columns(columns)
    resampled = resample_sums(columns, settings.resamples, settings.seed)
    return {
        name: make_figure(compute(sums), compute(resampled), settings.level)
        for name, compute in figures.items()
    }


def compute_figures_by_group(
    groups: Sequence[str],
    columns: Columns,
    figures: Mapping[str, Figure],
    settings: BootstrapSettings,
) -> dict[str, dict]:
    """{name/group: {value, interval}} over the items of each group; {} of one group."""
    names, groups = list(dict.fromkeys(groups)), np.array(groups)
    if len(names) == 1:
        return {}
    computed = {}
    for group in names:
        chosen = {name: column[groups == group] for name, column in columns.items()}
        for name, figure in compute_figures(chosen, figures, settings).items():
            computed[f'{name}/{group}'] = figure
    return computed


def compute_means(columns: Columns, settings: BootstrapSettings) -> dict[str, dict]:
    """{name: {value, interval}} of the mean of every column over its items."""
    figures = {name: mean_figure(name) for name in columns}
    num_items = len(next(iter(columns.values())))
    return compute_figures({'items': np.ones(num_items), **columns}, figures, settings)


def make_figure(value: float, samples: np.ndarray, level: float) -> dict:
    """{value, interval} of a figure and its bootstrap samples, (R,)."""
    ends = compute_interval(samples, level)
    return dict(
        value=finite_or_none(value), interval=[finite_or_none(end) for end in ends]
    )


def finite_or_none(value: float) -> float | None:
    """NaN and infinity → None, because JSON has neither."""
    return float(value) if math.isfinite(value) else None


# ---- resamples


def resample_counts(items: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draws `items` items with replacement for each resample; yields their counts.

    Yields (r, items) float64 whose rows sum to `items`; the r sum to `resamples`.
    """
    random = np.random.default_rng(seed)
    for rows in _chunks(items, resamples):
        drawn = random.integers(items, size=(rows, items))
        drawn += np.arange(rows)[:, None] * items
        counts = np.bincount(drawn.ravel(), minlength=rows * items)
        yield counts.reshape(rows, items).astype(np.float64)


def resample_sums(columns: Columns, resamples: int, seed: int) -> Columns:
    """Sums of every column over each resample, (resamples,) each."""
    table = make_table(columns)
    sums = [counts @ table for counts in resample_counts(len(table), resamples, seed)]
    return _named(columns, np.concatenate(sums))


def sum_columns(columns: Columns) -> dict[str, np.float64]:
    """Sums of every column over all items."""
    return {name: np.float64(np.sum(column)) for name, column in columns.items()}


def mean_figure(column: str, number: str = 'items') -> Figure:
    """The figure sum of `column` / sum of `number`; nan where `number` sums to 0."""

    def mean(sums):
        with np.errstate(divide='ignore', invalid='ignore'):
            return sums[column] / sums[number]

    return mean


def compute_interval(samples: np.ndarray, level: float) -> list[float]:
    """[low, high] of the middle `level` of the samples, without those that are NaN."""
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return [float('nan'), float('nan')]
    tails = (1 - level) / 2
    return [float(x) for x in np.quantile(samples, [tails, 1 - tails])]


# ---- two systems


def resample_differences(
    first: Columns, second: Columns, figure: Figure, resamples: int, seed: int
) -> np.ndarray:
    """The figure of `second` minus that of `first` on the same resamples, (R,)."""
    return figure(resample_sums(second, resamples, seed)) - figure(
        resample_sums(first, resamples, seed)
    )


def compute_p_value(
    first: Columns, second: Columns, figure: Figure, resamples: int, seed: int
) -> float:
    """The two-sided p-value: how often chance alone gives as large a difference.

    Under the null hypothesis the two systems are equal, and the two results of an item
    may be swapped: approximate randomisation (Noreen 1989; Riezler and Maxwell 2005).
    See `share_as_large`.
    """
    random = np.random.default_rng(seed)
    first_table, second_table = make_table(first), make_table(second)
    sums, difference = first_table.sum(axis=0), second_table - first_table
    first_sums, second_sums = [], []
    for rows in _chunks(len(first_table), resamples):
        swapped = random.integers(2, size=(rows, len(first_table))).astype(np.float64)
        moved = swapped @ difference
        first_sums.append(sums + moved)
        second_sums.append(sums + difference.sum(axis=0) - moved)
    permuted = figure(_named(first, np.concatenate(second_sums))) - figure(
        _named(first, np.concatenate(first_sums))
    )
    observed = abs(figure(sum_columns(second)) - figure(sum_columns(first)))
    return share_as_large(permuted, observed)


def share_as_large(permuted: np.ndarray, observed: float) -> float:
    """(1 + #{|d| >= |observed|}) / (1 + permutations); NaN if `observed` is not finite.

    A permutation without a value (0 / 0) counts as large: it is no evidence.
    """
    if not np.isfinite(observed):
        return float('nan')
    # The order of a sum changes its last bits, so nearly equal values count as equal.
    smaller = np.abs(permuted) < abs(observed) * (1 - 1e-9) - 1e-12
    return float((1 + np.sum(~smaller)) / (1 + len(permuted)))


def make_table(columns: Columns) -> np.ndarray:
    """(N, columns) float64."""
    return np.stack([np.asarray(c, np.float64) for c in columns.values()], axis=1)


def _named(columns: Columns, sums: np.ndarray) -> Columns:
    return dict(zip(columns, sums.T, strict=True))


def _chunks(items: int, resamples: int) -> list[int]:
    """The number of resamples in each chunk."""
    rows = max(1, CELLS // max(items, 1))
    return [min(rows, resamples - done) for done in range(0, resamples, rows)]
