import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptjax.core.console import UserError
from gptjax.data.packed_dataset import MAX_PERIOD, assign, integer_weights


def test_pattern_by_hand():
    source, count = assign(np.arange(6), [1, 2])
    assert source.tolist() == [1, 1, 0, 1, 1, 0]
    assert count.tolist() == [0, 1, 0, 2, 3, 1]


@given(
    weights=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    begin=st.integers(0, 2**40),
)
def test_each_period_has_each_source_as_often_as_its_weight(weights, begin):
    period = sum(weights)
    begin -= begin % period
    source, count = assign(np.arange(begin, begin + period), weights)
    assert np.bincount(source, minlength=len(weights)).tolist() == weights
    for index, weight in enumerate(weights):
        first = begin // period * weight
        expected = list(range(first, first + weight))
        assert count[source == index].tolist() == expected


@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=6), data=st.data())
def test_a_slot_does_not_depend_on_the_others(weights, data):
    slots = np.array(data.draw(st.lists(st.integers(0, 10**6), min_size=1)))
    source, count = assign(slots, weights)
    for place, slot in enumerate(slots):
        alone = assign(np.array([slot]), weights)
        assert (source[place], count[place]) == (alone[0][0], alone[1][0])


def test_large_numbers_do_not_overflow():
    weights = [MAX_PERIOD // 2 - 1, MAX_PERIOD // 2]
    slots = np.arange(2**52, 2**52 + 1000)
    source, count = assign(slots, weights)
    assert abs(np.bincount(source) - 500).max() <= 1
    exact = [slot // sum(weights) * weights[0] for slot in slots.tolist()]
    exact = [
        whole + slot % sum(weights) * weights[0] // sum(weights)
        for whole, slot in zip(exact, slots.tolist(), strict=True)
    ]
    zero = source == 0
    assert count[zero].tolist() == np.array(exact)[zero].tolist()


def test_spread_evenly():
    source, _ = assign(np.arange(1000), [1, 9])
    assert np.diff(np.flatnonzero(source == 0)).tolist() == [10] * 99


@pytest.mark.parametrize(
    'weights, sizes, expected',
    [
        ([0, 0], [30, 20], [3, 2]),  # by size
        ([0], [7], [1]),
        ([0.1, 0.9], [5, 5], [1, 9]),
        ([1, 3], [5, 5], [1, 3]),  # relative to their sum
        ([0.5, 0, 0], [9, 30, 10], [4, 3, 1]),  # the others share the rest by size
    ],
)
def test_integer_weights(weights, sizes, expected):
    names = 'abc'[: len(sizes)]
    weights = integer_weights(
        dict(zip(names, weights, strict=True)), dict(zip(names, sizes, strict=True))
    )
    assert list(weights.values()) == expected


def test_a_period_too_long_is_rounded():
    sizes = {'a': 2**40 + 1, 'b': 2**40 - 1, 'c': 1}
    weights = integer_weights(dict.fromkeys(sizes, 0.0), sizes)
    assert sum(weights.values()) <= MAX_PERIOD
    assert weights == {'a': 2**29, 'b': 2**29, 'c': 1}


def test_a_source_that_is_not_there_takes_no_part():
    assert integer_weights({'a': 0.5, 'b': 0.5, 'c': 0.0}, {'a': 3}) == {'a': 1}


@pytest.mark.parametrize('weight', [-1.0, float('nan'), float('inf')])
def test_a_weight_that_is_no_share(weight):
    with pytest.raises(UserError, match='data.sources.a.weight=.* is no share'):
        integer_weights({'a': weight}, {'a': 1})


def test_weights_that_leave_nothing():
    with pytest.raises(UserError, match='data.sources.b.weight=0 leaves .* sum to 1:'):
        integer_weights({'a': 1.0, 'b': 0.0}, {'a': 1, 'b': 1})
