"""Messages to the user: one-line errors, and a progress bar with the time left."""

import io
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread

QUIET_SECONDS = 2.0  # before the progress bar appears
LINE_SECONDS = 15.0  # between lines if the output is not a terminal


class UserError(Exception):
    """An error that the user can fix: the message names the field and the fix.

    `main` prints the message as one line, without a traceback, and exits with code 2.
    """


def accept_any_text() -> None:
    """Standard input and output replace what their encoding does not have.

    Lines of the input may end in '\\n', '\\r\\n' or '\\r'.
    """
    for stream, options in ((sys.stdin, dict(newline=None)), (sys.stdout, {})):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='replace', **options)


def describe_left_out(counts: Mapping[str, int], total: int, unit: str) -> str:
    """Such as 'data.min_characters=16 left out 7 of 80 documents'; '' if nothing is.

    It is a warning if more than a tenth is left out.

    Args:
        counts: by reason, which names the config field to change.
    """
    counts = {reason: count for reason, count in counts.items() if count}
    warning = 'warning: ' if sum(counts.values()) > total / 10 else ''
    parts = ', '.join(f'{why} left out {count:,}' for why, count in counts.items())
    return f'{warning}{parts} of {total:,} {unit}' if counts else ''


def join_lines(*lines: str) -> str:
    """The lines that are not empty."""
    return '\n'.join(filter(None, lines))


class Count:
    """The progress of a task, counted by one thread and drawn by another."""

    def __init__(self, total: float, start: float):
        self.total = total
        self.done = start
        self.note = ''
        self._began = time.monotonic()
        self._first = (
            None  # (time, done) at the first advance; the time before it is set-up
        )

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        self.done += amount
        if note is not None:
            self.note = note
        if amount and self._first is None:
            self._first = time.monotonic(), self.done

    def elapsed(self) -> str:
        """Such as '0:07'."""
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        return f'{minutes}:{seconds:02}'

    def seconds_left(self) -> float | None:
        """The estimate at the rate so far; None if it is unknown."""
        if not self.total or self._first is None or self.done <= self._first[1]:
            return None
        began, start = self._first
        rate = (self.done - start) / (time.monotonic() - began)
        return max(self.total - self.done, 0.0) / rate


@contextmanager
def progress_bar(
    label: str, total: float, unit: str = '', start: float = 0
) -> Iterator:
    """Shows progress on standard error; yields `advance(amount=1, note=None)`.

    On a terminal this is a bar; elsewhere (a log file, CI) a line after 2 seconds and
    then every 15 seconds. A thread draws it, also while the caller compiles or waits.

    Args:
        total: the number of units; 0 if it is unknown.
        unit: the name of the units, such as 'documents'.
        start: the number of units that are already done.
    """
    count = Count(total, start)
    draw = _draw_bar if sys.stderr.isatty() else _draw_lines
    ended = Event()
    drawing = Thread(target=draw, args=(label, unit, count, ended), daemon=True)
    drawing.start()
    try:
        yield count.advance
    finally:
        ended.set()
        drawing.join()


def _draw_lines(label: str, unit: str, count: Count, ended: Event) -> None:
    wait = QUIET_SECONDS
    while not ended.wait(wait):
        wait = LINE_SECONDS
        amount = f'{label}: {_amount(unit, count)}'.rstrip(': ')
        line = ', '.join(filter(None, [amount, _left(count)]))
        print(f'{line}  {count.note}'.rstrip(), file=sys.stderr, flush=True)


def _draw_bar(label: str, unit: str, count: Count, ended: Event) -> None:
    if ended.wait(QUIET_SECONDS):
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn('{task.description}', markup=False),
        progress.BarColumn(bar_width=30),  # pulses if the total is unknown
        progress.TextColumn('{task.fields[amount]}', markup=False),
        progress.TextColumn('{task.fields[note]}', markup=False),
    )

    def fields():
        notes = (count.elapsed(), _left(count), count.note)
        note = '  '.join(filter(None, notes))
        return dict(amount=_amount(unit, count), note=note)

    # What the caller prints appears above the bar.
    drawing = progress.Progress(
        *columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty()
    )
    with drawing:
        task = drawing.add_task(
            label, total=count.total or None, completed=count.done, **fields()
        )
        while not ended.wait(0.2):
            drawing.update(task, completed=count.done, **fields())
        drawing.update(task, completed=count.done, **fields())


def _amount(unit: str, count: Count) -> str:
    """Such as '3,000/5,000 documents', or '3,000 documents' if the total is unknown."""
    if count.total:
        return f'{count.done:,.0f}/{count.total:,.0f} {unit}'.rstrip()
    return f'{count.done:,.0f} {unit}'.rstrip() if count.done else ''


def _left(count: Count) -> str:
    seconds = count.seconds_left()
    if seconds is None:
        return ''
    if seconds < 90:
        return f'{seconds:,.0f} s left'
    if seconds < 5400:
        return f'{seconds / 60:,.0f} min left'
    return f'{seconds / 3600:,.1f} h left'
