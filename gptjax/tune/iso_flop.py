"""IsoFLOP curves: which size has the lowest loss for a number of FLOPs.

For each budget, a parabola of the loss in ln N through its runs; its minimum is the
best size for these FLOPs (Hoffmann et al. 2022, approach 2). N_opt ~ C^a is a line
through these minima on logarithmic scales.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class IsoFlop(NamedTuple):
    """The curve of one budget.

    flops: C, the mean of its runs.
    points: (N, loss) of its runs, by N.
    coefficients: of ln N, the highest power first; from `numpy.polyfit`.
    best: N at the minimum; None if that is not between the runs' sizes.
    """

    flops: float
    points: list[tuple[float, float]]
    coefficients: np.ndarray
    best: float | None

    def loss(self, parameters):
        return np.polyval(self.coefficients, np.log(parameters))


def fit_curve(flops, parameters, losses) -> IsoFlop:
    """The curve through the runs of one budget, at least three; (n,) each."""
    coefficients = np.polyfit(np.log(parameters), losses, 2)
    best, points = None, sorted(zip(parameters, losses, strict=True))
    if coefficients[0] > 0:
        minimum = math.exp(-coefficients[1] / (2 * coefficients[0]))
        if points[0][0] <= minimum <= points[-1][0]:
            best = minimum
    return IsoFlop(float(np.mean(flops)), points, coefficients, best)


def fit_curves(described: Sequence[dict]) -> list[IsoFlop]:
    """The curve of each budget of a ladder, whose runs are `described`."""
    curves = []
    for budget in sorted({run['budget'] for run in described}):
        members = [run for run in described if run['budget'] == budget]
        columns = ([r[k] for r in members] for k in ('flops', 'parameters', 'loss'))
        curves.append(fit_curve(*columns))
    return curves


def fit_exponent(curves: Sequence[IsoFlop]) -> float | None:
    """a in N_opt ~ C^a; None if fewer than two budgets have a best size."""
    optima = [(curve.flops, curve.best) for curve in curves if curve.best]
    if len(optima) < 2:
        return None
    return float(np.polyfit(*np.log(optima).T, 1)[0])


def extrapolate_lowest(curves: Sequence[IsoFlop], flops: float) -> float:
    """A baseline: a line through the lowest loss of each budget, on logarithmic scales.

    It has no irreducible loss, and does not know how large the model is.
    """
    log_flops = [math.log(curve.flops) for curve in curves]
    lowest = [math.log(min(loss for _, loss in curve.points)) for curve in curves]
    return math.exp(np.polyval(np.polyfit(log_flops, lowest, 1), math.log(flops)))
