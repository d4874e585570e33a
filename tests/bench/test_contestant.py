"""The line protocol, with a real interpreter and modules made for it."""

import sys

import pytest

from gptjax.bench.contestant import contestant
from gptjax.core.console import UserError

MODULE = """
import os, sys
from gptjax.bench.contestant import answer
from gptjax.core.console import UserError

def start():
    {start}
    print('libraries may print')
    return {{'arguments': sys.argv[1:]}}, {{
        'add': lambda a, b: {{'sum': a + b}},
        'leave': lambda code: os._exit(code),
    }}

answer(start)
"""


def module(tmp_path, monkeypatch, start='pass'):
    (tmp_path / 'counting.py').write_text(MODULE.format(start=start))
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    return 'counting'


def test_orders_are_answered(tmp_path, monkeypatch):
    name = module(tmp_path, monkeypatch)
    with contestant('it', name, ['--far'], sys.executable) as (description, ask):
        assert description == {'arguments': ['--far']}
        assert ask(dict(do='add', a=1, b=2)) == {'sum': 3}
        assert ask(dict(do='add', a=4, b=5)) == {'sum': 9}


def test_a_user_error_is_its_last_words(tmp_path, monkeypatch):
    name = module(tmp_path, monkeypatch, "raise UserError('no torch here')")
    with pytest.raises(UserError, match='^--against=it: no torch here$'):
        with contestant('it', name, [], sys.executable):
            pass


def test_an_end_between_orders_is_told(tmp_path, monkeypatch):
    name = module(tmp_path, monkeypatch)
    with contestant('it', name, [], sys.executable) as (_, ask):
        with pytest.raises(UserError, match='^--against=it: '):
            ask(dict(do='leave', code=9))
        with pytest.raises(UserError, match='^--against=it: '):  # the pipe is broken
            ask(dict(do='add', a=1, b=2))


def test_no_such_interpreter(tmp_path):
    python = str(tmp_path / 'none')
    with pytest.raises(
        UserError, match='^--against_python=.*No such file.*--against=it'
    ):
        with contestant('it', 'counting', [], python):
            pass
