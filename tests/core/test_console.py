"""Progress: lines in a file, a bar on a terminal, nothing for fast work."""

import os
import pty
import re
import subprocess
import sys
import time

import pytest

from gptjax.core import console
from tests import runs


@pytest.fixture
def impatient(monkeypatch):
    """Shows progress immediately and often."""
    monkeypatch.setattr(console, 'QUIET_SECONDS', 0.01)
    monkeypatch.setattr(console, 'LINE_SECONDS', 0.02)


def test_quick_things_show_nothing(capsys):
    with console.progress_bar('cleaning', 3, 'documents') as advance:
        for _ in range(3):
            advance()
    assert capsys.readouterr() == ('', '')


def test_lines_count_and_tell_the_time_left(impatient, capsys):
    with console.progress_bar('cleaning', 2000, 'documents') as advance:
        advance(0, 'warming up')
        time.sleep(0.05)
        advance(1000, 'from a.txt')
        advance(500)
        time.sleep(0.05)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == 'cleaning: 0/2,000 documents  warming up'
    assert re.fullmatch(
        r'cleaning: 1,500/2,000 documents, \d+ s left  from a.txt', lines[-1]
    )


@pytest.mark.parametrize('total', (0, 0.0))
def test_unknown_totals(total, impatient, capsys):
    with console.progress_bar('waiting', total) as advance:
        time.sleep(0.05)
        advance(2)
        time.sleep(0.05)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == 'waiting' and lines[-1] == 'waiting: 2'


def test_time_left_is_that_of_what_is_done_now(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    # Half was done earlier and does not count in the rate.
    count = console.Count(1000, 500)
    assert count.seconds_left() is None
    now = 130.0  # the time of compilation does not count in the rate
    count.advance(10)
    assert count.seconds_left() is None
    now = 140.0
    count.advance(90)  # 9 per second
    assert count.seconds_left() == pytest.approx(400 / 9)
    count.advance(900)  # beyond the total
    assert count.seconds_left() == 0


@pytest.mark.parametrize(
    'seconds, text',
    ((12.4, '12 s left'), (600, '10 min left'), (9000, '2.5 h left')),
)
def test_time_left_in_words(seconds, text, monkeypatch):
    monkeypatch.setattr(console.Count, 'seconds_left', lambda self: seconds)
    assert console._left(console.Count(1, 0)) == text


def test_errors_pass_and_end_the_bar(impatient, capsys):
    with pytest.raises(ZeroDivisionError):
        with console.progress_bar('dividing', 1):
            1 / 0  # noqa: B018
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('total', (5, 0))
def test_bar_on_a_terminal(total):
    code = (
        'import time; from gptjax.core import console; console.QUIET_SECONDS = 0.1\n'
        f'with console.progress_bar("[training]", {total}, "steps") as advance:\n'
        '    advance(0, "compiling"); time.sleep(0.8)\n'
        '    advance(3, "loss 3.2"); print("a line"); time.sleep(0.5)\n'
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, '-c', code], stdout=theirs, stderr=theirs, cwd=runs.ROOT,
        env=dict(os.environ, TERM='xterm', COLUMNS='100'),
    )  # fmt: skip
    os.close(theirs)
    shown = b''
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the terminal is closed
        pass
    assert process.wait(timeout=30) == 0
    text = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', shown.decode())
    assert '[training]' in text and 'compiling' in text and 'loss 3.2' in text
    assert ('3/5 steps' if total else '3 steps') in text
    assert 'a line' in text
    assert 'Traceback' not in text
