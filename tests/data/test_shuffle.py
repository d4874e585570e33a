import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptjax.data.packed_dataset import permute


@given(size=st.integers(1, 3000), key=st.text(max_size=8))
def test_is_a_permutation(size, key):
    places = permute(np.arange(size), size, key)
    assert sorted(places.tolist()) == list(range(size))


@given(size=st.integers(1, 2**61), key=st.text(max_size=8), data=st.data())
def test_each_index_alone_and_any_shape(size, key, data):
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1)))
    together = permute(index, size, key)
    assert ((together >= 0) & (together < size)).all()
    assert permute(index[:1], size, key) == together[0]
    assert (permute(index[None], size, key) == together[None]).all()


def test_order_is_the_same_for_ever():
    """Saved runs go on with this order: if these change, old runs cannot."""
    assert permute(np.arange(10), 10, '0').tolist() == [2, 6, 7, 9, 4, 1, 3, 0, 8, 5]
    far = permute(np.array([0, 1, 10**12]), 2**50, 'key')
    assert far.tolist() == [60131117808725, 185295588098849, 224082356724139]


def test_looks_random():
    size = 10_007
    places = permute(np.arange(size), size, 'a')
    neighbours = np.corrcoef(places[:-1], places[1:])[0, 1]
    assert abs(neighbours) < 5 / np.sqrt(size)
    assert abs(np.corrcoef(np.arange(size), places)[0, 1]) < 5 / np.sqrt(size)
    other = permute(np.arange(size), size, 'b')
    assert (places == other).sum() < 10  # 1 expected


@pytest.mark.parametrize('size', [2, 3, 5])
def test_small_sizes_get_every_order(size):
    orders = {tuple(permute(np.arange(size), size, str(key))) for key in range(1000)}
    assert len(orders) == math.factorial(size)


def test_an_index_outside_is_refused():
    for index in (-1, 5):
        with pytest.raises(ValueError, match='outside 0 … 4'):
            permute(np.array([index]), 5, '')
