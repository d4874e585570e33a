"""Timing and speedups by hand, and commands to a process."""

import sys

import pytest

from gptjax.bench import comparison
from gptjax.bench.comparison import library_process
from gptjax.core.console import UserError


def test_summarize_by_hand():
    assert comparison.summarize([2.0, 1.0, 4.0], tokens=8) == {
        'steps': 3,
        'median_seconds': 2.0,
        'least_seconds': 1.0,
        'tokens_per_second': 4.0,
        'best_tokens_per_second': 8.0,
    }


def test_implementations_alternate_and_each_comes_first(monkeypatch):
    monkeypatch.setattr(comparison, 'SETTLE_SECONDS', 0)
    order = []

    def implementation(name, seconds):
        def run_steps(steps):
            order.append(name)
            return [seconds] * steps

        return run_steps

    implementations = {'a': implementation('a', 1.0), 'b': implementation('b', 2.0)}
    seconds = comparison.time_alternately(implementations, rounds=3, steps=2)
    assert order == ['a', 'b', 'b', 'a', 'a', 'b']
    assert seconds == {'a': [[1.0, 1.0]] * 3, 'b': [[2.0, 2.0]] * 3}


def test_speedup_compares_within_rounds():
    # The machine has half the speed after the first round; the ratio does not change.
    ours = [[1.0, 1.0, 9.0], [2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    theirs = [[1.5, 1.5, 1.5], [3.0, 3.0, 3.0], [4.0, 4.0, 4.0]]
    speedup = {'ratio': 1.5, 'low': 1.5, 'high': 2.0}
    results = comparison.summarize_all(dict(ours=ours, theirs=theirs), tokens=2)
    assert results['theirs']['speedup'] == speedup
    assert results['ours'] == comparison.summarize(sum(ours, []), 2)
    with pytest.raises(ValueError):  # the numbers of rounds differ
        comparison.summarize_all(dict(ours=[[1.0]], theirs=[[1.0], [1.0]]), tokens=2)


def test_available_cores_are_those_the_process_may_use(monkeypatch):
    monkeypatch.setattr(comparison.os, 'cpu_count', lambda: 8)
    affinity = lambda process: {1, 5, 6}
    monkeypatch.setattr(comparison.os, 'sched_getaffinity', affinity, raising=False)
    assert comparison.available_cores() == 3
    monkeypatch.delattr(comparison.os, 'sched_getaffinity')  # only Linux has it
    assert comparison.available_cores() == 8
    monkeypatch.setattr(comparison.os, 'cpu_count', lambda: None)
    assert comparison.available_cores() == 1


# ---- another library ------------------------------------------------------------

MODULE = """
import os, sys
from gptjax.bench.comparison import serve_commands

def start():
    {start}
    print('libraries may print')
    return {{'arguments': sys.argv[1:]}}, {{
        'add': lambda a, b: {{'sum': a + b}},
        'exit': lambda code: os._exit(code),
    }}

serve_commands(start)
"""


def write_module(tmp_path, monkeypatch, start='pass'):
    (tmp_path / 'counting.py').write_text(MODULE.format(start=start))
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    return 'counting'


def test_commands_are_answered(tmp_path, monkeypatch):
    name = write_module(tmp_path, monkeypatch)
    with library_process('it', name, ['--far'], sys.executable) as (description, call):
        assert description == {'arguments': ['--far']}
        assert call(dict(do='add', a=1, b=2)) == {'sum': 3}
        assert call(dict(do='add', a=4, b=5)) == {'sum': 9}


def test_a_process_that_ends_between_commands_is_an_error(tmp_path, monkeypatch):
    silent = "sys.stdout = open(os.devnull, 'w')"
    name = write_module(tmp_path, monkeypatch, silent)
    with library_process('it', name, [], sys.executable) as (_, call):
        # The second command finds a broken pipe.
        for command in (dict(do='exit', code=9), dict(do='add', a=1, b=2)):
            with pytest.raises(UserError, match='^--against=it: .* ended with code 9$'):
                call(command)


def test_a_missing_interpreter_is_named(tmp_path):
    python = str(tmp_path / 'none')
    with pytest.raises(
        UserError, match='^--against_python=.*No such file.*--against=it'
    ):
        with library_process('it', 'counting', [], python):
            pass
