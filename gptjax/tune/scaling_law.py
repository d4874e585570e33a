"""The scaling law of the loss in parameters N and tokens D, fitted to finished runs.

    L(N, D) = E + A / N^alpha + B / D^beta              Hoffmann et al. 2022, approach 3

The fit minimises, over a = ln A, b = ln B, e = ln E, alpha and beta,

    sum_i huber_delta(logsumexp(a - alpha ln N_i, b - beta ln D_i, e) - ln L_i)

by BFGS from a grid of starts. Intervals are from a bootstrap over
the runs: each resample is fitted from the best fit (Besiroglu et al. 2024 found that
the published intervals were too narrow, because the optimiser had stopped early).
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from gptjax.core.console import UserError, progress_bar
from gptjax.eval.bootstrap import (
    BootstrapSettings,
    compute_interval,
    make_figure,
    resample_counts,
)

DELTA = 1e-3  # residuals of ln L above count linearly; Hoffmann et al. 2022
LEAST_RUNS = 8  # five parameters, and something to judge them by
# Starts: each term as a share of the mean loss, at the mean of ln N and ln D.
SHARES = (0.1, 0.3, 0.6)
EXPONENTS = (0.1, 0.3, 1.0)
KEPT = 5  # starts that are followed to the end


class Runs(NamedTuple):
    """Finished runs: parameters N, tokens D, losses in nats a token; (n,) float64."""

    parameters: np.ndarray
    tokens: np.ndarray
    losses: np.ndarray


class Law(NamedTuple):
    """The constants of the law; arrays if there are several laws."""

    A: float
    B: float
    E: float
    alpha: float
    beta: float

    def predict(self, parameters, tokens):
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def optimal_exponent(self):
        """a in N_opt ~ C^a, the size with the lowest loss for C = 6 N D."""
        return self.beta / (self.alpha + self.beta)

    def optimal_parameters(self, flops):
        """The size with the lowest loss for C = 6 N D (Hoffmann et al. 2022, eq. 4)."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        balance = ratio ** (1 / (self.alpha + self.beta))
        return balance * (flops / 6) ** self.optimal_exponent()


class Fit(NamedTuple):
    """law: of all runs. laws: of the resamples, (R,) each. residuals: of ln L, (n,)."""

    law: Law
    laws: Law
    residuals: np.ndarray

    def describe(self, level: float) -> dict[str, dict]:
        """{value, interval} of each constant and of `optimum`, the optimal exponent."""
        named = self.laws._asdict() | dict(optimum=self.laws.optimal_exponent())
        values = self.law._asdict() | dict(optimum=self.law.optimal_exponent())
        return {
            name: make_figure(values[name], samples, level)
            for name, samples in named.items()
        }


def fit_runs(runs: Runs, settings: BootstrapSettings, delta: float = DELTA) -> Fit:
    """The law of these runs, and those of resamples.

    Raises UserError if there are too few runs, or too few sizes or lengths among them.
    """
    for name, values, least in (
        ('runs', runs.losses, LEAST_RUNS),
        ('different numbers of parameters', np.unique(runs.parameters), 3),
        ('different numbers of tokens', np.unique(runs.tokens), 3),
    ):
        if len(values) < least:
            raise UserError(
                f'{len(values)} {name} cannot decide the five constants of the law: '
                f'use at least {least}'
            )
    problem = _Problem(runs, delta)
    best = problem.minimize_from_grid()
    fits, everyone = [], settings.resamples
    with progress_bar('fitting resamples', everyone, 'resamples') as advance:
        for rows in resample_counts(len(runs.losses), everyone, settings.seed):
            for counts in rows:
                fits.append(problem.minimize(best, counts)[1])
                advance()
    laws = [problem.to_law(theta) for theta in fits]
    law = problem.to_law(best)
    return Fit(law, Law(*np.transpose(laws)), problem.residuals(best))


def forecast(
    fit: Fit, parameters: float, tokens: float, level: float, seed: int
) -> tuple[float, list[float]]:
    """(loss, [low, high]) of a single run of this size.

    The interval has both uncertainties: of the law, by the resamples, and of a run
    around it, by residuals that are drawn with replacement. n residuals of a fit of
    five constants are too small by a factor of about sqrt((n - 5) / n), and with them
    the spread of the resamples.
    """
    random, n = np.random.default_rng(seed), len(fit.residuals)
    predicted = float(fit.law.predict(parameters, tokens))
    deviations = np.log(fit.laws.predict(parameters, tokens) / predicted)
    # A residual is fitted minus measured.
    deviations -= random.choice(fit.residuals, len(deviations))
    losses = predicted * np.exp(deviations * math.sqrt(n / (n - 5)))
    return predicted, compute_interval(losses, level)


class _Problem:
    """The objective, with ln N and ln D around their means: the fit is better posed.

    theta = (a - alpha mean ln N, b - beta mean ln D, e, alpha, beta), each of the first
    three relative to ln of the mean loss.
    """

    def __init__(self, runs: Runs, delta: float):
        self.delta = delta
        self.log_losses = np.log(runs.losses)
        self.centre = np.log(np.mean(runs.losses))
        log_sizes = np.log([runs.parameters, runs.tokens])
        self.means = log_sizes.mean(axis=1)
        self.log_sizes = log_sizes - self.means[:, None]  # (2, n)

    def terms(self, theta):
        """The logarithms of the three terms relative to the mean loss, (3, n)."""
        powers = theta[:2, None] - theta[3:, None] * self.log_sizes
        return np.vstack([powers, np.full(len(self.log_losses), theta[2])])

    def residuals(self, theta):
        return np.logaddexp.reduce(self.terms(theta)) + self.centre - self.log_losses

    def objective(self, theta, counts):
        """(sum of huber(r / delta), its gradient), each run counted so many times."""
        terms = self.terms(theta)
        total = np.logaddexp.reduce(terms)
        r = (total + self.centre - self.log_losses) / self.delta
        clipped = np.clip(r, -1, 1)  # huber(r) = clipped (r - clipped / 2)
        value = counts @ (clipped * (r - clipped / 2))
        slope = counts * clipped / self.delta * np.exp(terms - total)  # (3, n)
        exponents = -(slope[:2] * self.log_sizes).sum(axis=1)
        return value, np.concatenate([slope.sum(axis=1), exponents])

    def minimize(self, start, counts, iterations=1000) -> tuple[float, np.ndarray]:
        """Of five parameters the whole inverse Hessian is kept: BFGS without the L."""
        found = minimize(
            self.objective,
            start,
            args=(counts,),
            jac=True,
            method='BFGS',
            options=dict(gtol=1e-6, maxiter=iterations),
        )
        return found.fun, found.x

    def minimize_from_grid(self) -> np.ndarray:
        shares = [np.log(SHARES)] * 3
        grid = [*itertools.product(*shares, EXPONENTS, EXPONENTS)]
        counts, value = np.ones(len(self.log_losses)), lambda fit: fit[0]
        fits = [self.minimize(np.array(start), counts, 30) for start in grid]
        fits = sorted(fits, key=value)[:KEPT]
        return min((self.minimize(x, counts) for _, x in fits), key=value)[1]

    def to_law(self, theta) -> Law:
        logs = theta[:3] + self.centre
        logs[:2] += theta[3:] * self.means
        return Law(*map(float, (*np.exp(logs), *theta[3:])))
