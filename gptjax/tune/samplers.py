"""How `tune` chooses the values of a trial, and which trials it ends early."""

import itertools
from collections.abc import Sequence

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler

from gptjax.core.console import UserError
from gptjax.tune.search_space import Dimension

SAMPLERS = ('tpe', 'random', 'grid', 'cmaes')
PRUNERS = ('median', 'hyperband', 'none')
EXCESS = 'excess'  # attribute of a trial: how far it is above each limit


class GridInOrder(BaseSampler):
    """Trial n has point n of the grid, so that no process evaluates a point twice."""

    def __init__(self, dimensions: Sequence[Dimension]):
        self.fields = [dimension.field for dimension in dimensions]
        self.points = [*itertools.product(*(d.grid() for d in dimensions))]

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        point = self.points[trial.number % len(self.points)]
        return point[self.fields.index(param_name)]


def make_sampler(name: str, dimensions: Sequence[Dimension], seed: int) -> BaseSampler:
    """A sampler for one trial; all that it has learned is in the database.

    A sampler with a seed would draw the numbers of the first trials again after a
    restart: each trial has a sampler, and a seed, of its own.
    """
    if name == 'grid':
        return GridInOrder(dimensions)
    if name == 'random':
        return RandomSampler(seed)
    if name == 'cmaes':
        try:
            import cmaes  # noqa: F401
        except ImportError:
            raise UserError(
                '--sampler=cmaes needs the package cmaes: `pip install cmaes`, or use '
                'another sampler'
            ) from None
        return CmaEsSampler(seed=seed, warn_independent_sampling=False)
    # Bergstra et al. 2011. A trial that is running counts as a bad one, so that workers
    # do not try the same values.
    return TPESampler(
        seed=seed,
        constant_liar=True,
        constraints_func=lambda trial: trial.user_attrs.get(EXCESS, [0.0]),
    )


def make_pruner(name: str, eval_every: int) -> BasePruner:
    """A pruner that sees validation losses by the number of steps."""
    if name == 'median':
        return MedianPruner()  # the first five trials are not pruned
    if name == 'hyperband':  # Li et al. 2018
        return HyperbandPruner(min_resource=eval_every)
    return NopPruner()
