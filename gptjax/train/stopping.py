"""Why a run stops before its last step: validation no longer improves, or a signal."""

import contextlib
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils

ON_CTRL_C = b'\nsaving after this step; Ctrl-C again quits at once\n'


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


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[int], int | None]]:
    """Yields a function from updates done to the signal that asks to stop, or None.

    While it lasts SIGTERM and a first Ctrl-C only ask; a second Ctrl-C kills. One of
    several processes may receive a signal alone: JAX then agrees on an update after
    which all stop. It counts by one, so it is given updates and not steps.
    """
    if jax.process_count() > 1:
        reached = multihost_utils.reached_preemption_sync_point
        yield lambda updates: signal.SIGTERM if reached(updates) else None
        return
    received = []

    def receive(number, frame):
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.write(2, ON_CTRL_C)  # print may be what was interrupted

    if threading.current_thread() is not threading.main_thread():
        yield lambda updates: None  # signals are the main thread's
        return
    handlers = {
        number: signal.signal(number, receive)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield lambda updates: received[0] if received else None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
