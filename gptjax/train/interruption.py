"""SIGTERM and Ctrl-C, between two steps."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

ON_CTRL_C = b'\nsaving after this step; Ctrl-C again quits at once\n'


@contextmanager
def interruption() -> Iterator[Callable[[int], int | None]]:
    """Yields a function of the steps done to the signal that asks to stop, or None.

    While it lasts SIGTERM and a first Ctrl-C only ask; a second Ctrl-C kills. Of
    several processes one may be told alone: JAX then agrees on a step at which
    all stop.
    """
    if jax.process_count() > 1:
        reached = multihost_utils.reached_preemption_sync_point
        yield lambda done: signal.SIGTERM if reached(done) else None
        return
    asked = []

    def ask(number, frame):
        asked.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.write(2, ON_CTRL_C)  # print may be what was interrupted

    if threading.current_thread() is not threading.main_thread():
        yield lambda done: None  # signals are the main thread's
        return
    before = {
        number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield lambda done: asked[0] if asked else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
