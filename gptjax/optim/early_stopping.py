"""Stopping when validation no longer improves."""

import math
from typing import NamedTuple


class EarlyStopping(NamedTuple):
    """Counts validations without a better loss; a value, never changed in place.

    `_asdict()` is JSON, and `EarlyStopping(**fields)` makes the same value again,
    so a checkpoint can hold it.
    """

    patience: int  # this many validations without a better loss stop; 0: never
    best: float | None = None  # the lowest loss so far, None before the first
    worse: int = 0  # validations since the lowest

    def after(self, loss: float) -> 'EarlyStopping':
        """The value after one more validation; a loss of NaN counts as worse."""
        if math.isfinite(loss) and (self.best is None or loss < self.best):
            return self._replace(best=float(loss), worse=0)
        return self._replace(worse=self.worse + 1)

    @property
    def should_stop(self) -> bool:
        return 0 < self.patience <= self.worse
