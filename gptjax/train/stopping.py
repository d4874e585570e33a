"""Stopping by the validation loss, by who watches a run, and on a signal."""

import contextlib
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils

ON_CTRL_C = b'\nsaving after this step; Ctrl-C again quits at once\n'


class EarlyStopping(NamedTuple):
    """Counts validations without a lower loss. Checkpoints keep its fields as JSON."""

    patience: int  # validations without a lower loss after which to stop; 0: no limit
    best: float | None = None  # the lowest loss so far; None before the first
    worse: int = 0  # validations since the lowest loss

    def after(self, loss: float) -> 'EarlyStopping':
        """The value after one more validation; a loss of NaN counts as worse."""
        if math.isfinite(loss) and (self.best is None or loss < self.best):
            return self._replace(best=float(loss), worse=0)
        return self._replace(worse=self.worse + 1)

    @property
    def should_stop(self) -> bool:
        return 0 < self.patience <= self.worse


# (steps done, validation) -> why the run should end, or None
Watch = Callable[[int, dict], str | None]
WATCH: ContextVar[Watch] = ContextVar('watch', default=lambda done, validation: None)


@contextlib.contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Inside, `fit` calls `watch` after each validation, in every process.

    The run ends with the text that `watch` returns as its reason, and never resumes.
    """
    token = WATCH.set(watch)
    try:
        yield
    finally:
        WATCH.reset(token)


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[int], int | None]]:
    """Yields a function from the number of updates done to a stop signal, or None.

    Inside the context, SIGTERM and the first Ctrl-C only request a stop; a second
    Ctrl-C quits at once. If one of several processes receives SIGTERM, JAX agrees on an
    update after which all processes stop. JAX counts in ones: pass updates, not steps.
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
            os.write(2, ON_CTRL_C)  # a signal may arrive inside print: do not call it

    if threading.current_thread() is not threading.main_thread():
        yield lambda updates: None  # only the main thread receives signals
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
