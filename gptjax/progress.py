"""A progress bar with the time left, for everything that takes over two seconds."""

import sys
import time
from contextlib import contextmanager

QUIET_SECONDS = 2.0  # nothing is shown before
LINE_SECONDS = 15.0  # between lines where the output is no terminal


@contextmanager
def bar(label: str, total: float, unit: str = ''):
    """Yields `advance(amount, note='')`; draws on standard error.

    On a terminal it is one line drawn anew; elsewhere (a log file, CI) a line
    every fifteen seconds.

    Args:
        label: what is being done, as 'cleaning'.
        total: how many units there are; 0 where nobody knows.
        unit: what one is, as 'documents'.
    """
    draw = _terminal_bar if sys.stderr.isatty() else _line_bar
    with draw(label, total, unit) as advance:
        yield advance


@contextmanager
def _terminal_bar(label, total, unit):
    from rich import progress

    columns = (
        progress.TextColumn('{task.description}'),
        progress.BarColumn(),
        progress.TextColumn('{task.completed:,.0f}/{task.total:,.0f} ' + unit),
        progress.TimeElapsedColumn(),
        progress.TextColumn('left'),
        progress.TimeRemainingColumn(),
        progress.TextColumn('{task.fields[note]}'),
    )
    from rich.console import Console

    drawing = progress.Progress(*columns, console=Console(stderr=True))
    task = drawing.add_task(label, total=total or None, note='')
    began, shown = time.monotonic(), False

    def advance(amount: float = 1, note: str | None = None):
        nonlocal shown
        drawing.advance(task, amount)
        if note is not None:
            drawing.update(task, note=note)
        if not shown and time.monotonic() - began > QUIET_SECONDS:
            drawing.start()
            shown = True

    try:
        yield advance
    finally:
        if shown:
            drawing.stop()


@contextmanager
def _line_bar(label, total, unit):
    began = spoken = time.monotonic()
    done = 0.0

    def advance(amount: float = 1, note: str | None = None):
        nonlocal done, spoken
        done += amount
        now = time.monotonic()
        if now - began < QUIET_SECONDS or now - spoken < LINE_SECONDS:
            return
        spoken = now
        line = f'{label}: {done:,.0f} {unit}'.rstrip()
        if total:
            left = (now - began) * (total - done) / max(done, 1e-9)
            line = f'{label}: {done:,.0f}/{total:,.0f} {unit}, {left:,.0f} s left'
        print(f'{line}  {note or ""}'.rstrip(), file=sys.stderr, flush=True)

    yield advance
