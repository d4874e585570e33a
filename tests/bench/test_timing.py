import pytest

from gptjax.bench import timing


def test_summarize_by_hand():
    assert timing.summarize([2.0, 1.0, 4.0], tokens=8) == {
        'steps': 3,
        'median_seconds': 2.0,
        'least_seconds': 1.0,
        'tokens_per_second': 4.0,
        'best_tokens_per_second': 8.0,
    }


def test_contestants_take_turns_and_each_comes_first(monkeypatch):
    monkeypatch.setattr(timing, 'SETTLE_SECONDS', 0)
    order = []

    def contestant(name, seconds):
        def go(steps):
            order.append(name)
            return [seconds] * steps

        return go

    contestants = {'a': contestant('a', 1.0), 'b': contestant('b', 2.0)}
    seconds = timing.interleave(contestants, rounds=3, steps=2)
    assert order == ['a', 'b', 'b', 'a', 'a', 'b']
    assert seconds == {'a': [[1.0, 1.0]] * 3, 'b': [[2.0, 2.0]] * 3}


def test_speedup_compares_within_rounds():
    """The machine halves its speed after the first round; the ratio stays."""
    ours = [[1.0, 1.0, 9.0], [2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    theirs = [[1.5, 1.5, 1.5], [3.0, 3.0, 3.0], [4.0, 4.0, 4.0]]
    assert timing.speedup(ours, theirs) == {'ratio': 1.5, 'low': 1.5, 'high': 2.0}


def test_rounds_must_match():
    with pytest.raises(ValueError):
        timing.speedup([[1.0]], [[1.0], [1.0]])


def test_available_cores_are_those_the_process_may_use(monkeypatch):
    monkeypatch.setattr(timing.os, 'cpu_count', lambda: 8)
    may_use = lambda process: {1, 5, 6}
    monkeypatch.setattr(timing.os, 'sched_getaffinity', may_use, raising=False)
    assert timing.available_cores() == 3
    monkeypatch.delattr(timing.os, 'sched_getaffinity')  # as outside Linux
    assert timing.available_cores() == 8
    monkeypatch.setattr(timing.os, 'cpu_count', lambda: None)
    assert timing.available_cores() == 1
