"""Sources mixed by weight: which source, and which of its examples, fills a slot.

The slots of all batches are numbered from 0: slot = step * batch_size + row. With
integer weights w the pattern of sources repeats every sum(w) slots and holds each
source exactly w times, evenly spread, so the mixture is exact, not a matter of luck,
and any slot's source is computed without those before it.
"""

import math
from fractions import Fraction

import numpy as np

from gptjax.core.console import UserError

MAX_PERIOD = 2**31  # so that a product of two stays below 2^63


def integer_weights(
    weights: dict[str, float], sizes: dict[str, int], field: str = 'data.sources'
) -> dict[str, int]:
    """How many examples of each source there are in one period of the mixture.

    A weight is the share of the examples that the source gets; 0 leaves it to size:
    the sources without a weight divide what the others leave among themselves by
    size. All 0 is one pass over everything; all given are relative to their sum.

    Args:
        weights: `data.sources.NAME.weight` by source.
        sizes: examples of each source, positive.
        field: the config's name for the sources, for errors.

    Raises:
        UserError: a negative weight, or weights that leave nothing to the sources
            without one.
    """
    given = {}
    for name in sizes:
        weight = weights[name]
        if not 0 <= weight < math.inf:
            raise UserError(
                f'{field}.{name}.weight={weight} is no share: give a positive '
                'number, or 0 for its share by size'
            )
        given[name] = Fraction(str(weight))
    by_size = sum(sizes[name] for name in sizes if not given[name])
    left = 1 - sum(given.values())
    if by_size and left <= 0:
        name = next(name for name in sizes if not given[name])
        raise UserError(
            f'{field}.{name}.weight=0 leaves it to the other weights, which sum '
            f'to {float(1 - left):g}: let them sum to less than 1, or give it a weight'
        )
    shares = [given[name] or left * Fraction(sizes[name], by_size) for name in sizes]
    return dict(zip(sizes, in_whole_numbers(shares), strict=True))


def in_whole_numbers(shares: list[Fraction]) -> list[int]:
    """The smallest whole numbers, at least 1 each, that stand as the shares do."""
    total = sum(shares)
    shares = [share / total for share in shares]
    period = math.lcm(*(share.denominator for share in shares))
    if period > MAX_PERIOD:  # rounded: off by less than one in 2^30
        period = MAX_PERIOD // 2
    return [max(1, round(share * period)) for share in shares]


def assign(slots: np.ndarray, weights: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The source of each slot, and how many earlier slots had that source.

    With weights 1 and 2 the sources of slots 0 … 5 are 1, 1, 0, 1, 1, 0.

    Args:
        slots: (n,) int64.
        weights: of the sources, from `integer_weights`.

    Returns:
        source: (n,) int64 index into `weights`.
        count: (n,) int64.
    """
    source = np.full(slots.shape, len(weights) - 1)
    count = np.zeros(slots.shape, np.int64)
    unassigned = np.arange(len(slots))
    rest = slots  # the number of each unassigned slot among those left
    for index, weight in enumerate(weights):
        total = sum(weights[index:])
        period, place = np.divmod(rest, total)
        # of `total` slots this source takes those where n * weight // total rises
        before = place * weight // total
        takes = (place + 1) * weight // total > before
        earlier = period * weight + before
        source[unassigned[takes]] = index
        count[unassigned[takes]] = earlier[takes]
        unassigned, rest = unassigned[~takes], (rest - earlier)[~takes]
    return source, count
