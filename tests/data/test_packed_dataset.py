import math
import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data.packed_dataset import (
    MAX_PERIOD,
    PackedDataset,
    assign_sources,
    integer_weights,
    permute,
)

WEIGHTS = st.lists(st.integers(1, 50), min_size=1, max_size=6)


def test_each_epoch_has_every_row_once_in_another_order(run):
    packed = PackedDataset(run.prepared, 'train')
    size = packed.num_rows
    slots = np.arange(size)
    choose = packed.choose_training_rows
    epochs = [choose(0, slots + epoch * size) for epoch in range(3)]
    for number, choice in enumerate(epochs):
        rows = zip(choice.source.tolist(), choice.row.tolist(), strict=True)
        assert len(set(rows)) == size
        assert set(choice.epoch) == {number}
    for other in (epochs[1], choose(1, slots)):
        assert (other.source == epochs[0].source).all()
        assert (other.row == epochs[0].row).mean() < 0.3
    again = PackedDataset(run.prepared, 'train').choose_training_rows(0, slots)
    assert (again.row == epochs[0].row).all()


def test_weights_are_exact(new_run):
    packed = PackedDataset(new_run(weights=(0.25, 0.75)).prepared, 'train')
    for begin in (0, 10**9):
        choice = packed.choose_training_rows(0, np.arange(4000) + begin)
        assert np.bincount(choice.source).tolist() == [1000, 3000]
    # Each source has its own epochs.
    size = packed.sources[0].num_rows
    rows = packed.choose_training_rows(0, np.arange(4 * size))
    assert sorted(rows.row[rows.source == 0]) == list(range(size))


def test_a_pass_has_every_row_once_and_then_empty_ones(run):
    packed = PackedDataset(run.prepared, 'validation')
    choice = packed.choose_pass_rows(np.arange(packed.num_rows + 5))
    counts = Counter(zip(choice.source.tolist(), choice.row.tolist(), strict=True))
    assert [pair for pair, n in counts.items() if n > 1] == [(-1, 0)]
    assert len(counts) == packed.num_rows + 1
    batch = packed.load(choice)
    assert (batch['weights'][-5:] == 0).all() and (batch['segments'][-5:] == 0).all()
    tokens = sum(
        source['predicted_tokens']
        for source in packed.manifest['splits']['validation'].values()
    )
    assert batch['weights'].sum() == tokens


def test_the_documents_of_a_row(run):
    packed = PackedDataset(run.prepared, 'train')
    choice = packed.choose_pass_rows(np.arange(packed.num_rows))
    batch = packed.load(choice)
    for slot in range(packed.num_rows):
        source = packed.sources[choice.source[slot]]
        texts = dict(run.documents['train'][source.name])
        names = source.documents(choice.row[slot], packed.context)
        inputs, segments = batch['inputs'][slot], batch['segments'][slot]
        kept = np.unique(segments[batch['weights'][slot] > 0])
        assert len(names) == len(kept)
        for number, name in enumerate(names, 1):
            assert run.tokenizer.decode(inputs[segments == number]) in texts[name]


def test_damage_is_named(run, tmp_path):
    folder = shutil.copytree(run.prepared, tmp_path / 'prepared')
    path = folder / 'train' / 'b' / 'tokens-00000.npy'
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r'tokens-00000.npy has .* delete .*prepared'):
        PackedDataset(folder, 'train')
    path.unlink()
    with pytest.raises(UserError, match='tokens-00000.npy is missing'):
        PackedDataset(folder, 'train')
    assert PackedDataset(folder, 'validation').num_rows
    manifest = storage.read_json(folder / 'manifest.json')
    manifest['splits']['validation'] = {}
    storage.write_json(folder / 'manifest.json', manifest)
    with pytest.raises(UserError, match='has no documents: .*validation_fraction'):
        PackedDataset(folder, 'validation')
    (folder / 'manifest.json').unlink()
    with pytest.raises(UserError, match='prepared is not there: run .* `prepare`'):
        PackedDataset(folder, 'validation')


# ---- Sources mixed by weight


def test_pattern_by_hand():
    source, count = assign_sources(np.arange(6), [1, 2])
    assert source.tolist() == [1, 1, 0, 1, 1, 0]
    assert count.tolist() == [0, 1, 0, 2, 3, 1]
    source, _ = assign_sources(np.arange(1000), [1, 9])
    assert np.diff(np.flatnonzero(source == 0)).tolist() == [10] * 99


@given(weights=WEIGHTS, begin=st.integers(0, 2**40))
def test_each_period_has_each_source_as_often_as_its_weight(weights, begin):
    period = sum(weights)
    begin -= begin % period
    source, count = assign_sources(np.arange(begin, begin + period), weights)
    assert np.bincount(source, minlength=len(weights)).tolist() == weights
    for index, weight in enumerate(weights):
        first = begin // period * weight
        expected = list(range(first, first + weight))
        assert count[source == index].tolist() == expected
    # A slot does not depend on other slots.
    some = np.arange(period)[:: -1 - period // 10]
    for places in (some, some[:1], some[1:2], np.repeat(some, 2)):
        found = assign_sources(begin + places, weights)
        np.testing.assert_array_equal(found, (source[places], count[places]))


def test_large_numbers_do_not_overflow():
    weights = [MAX_PERIOD // 2 - 1, MAX_PERIOD // 2]
    slots = np.arange(2**52, 2**52 + 1000)
    source, count = assign_sources(slots, weights)
    assert abs(np.bincount(source) - 500).max() <= 1
    for slot, earlier in zip(
        slots[source == 0].tolist(), count[source == 0], strict=True
    ):
        period, place = divmod(slot, sum(weights))
        assert earlier == period * weights[0] + place * weights[0] // sum(weights)


@pytest.mark.parametrize(
    'weights, sizes, expected',
    [
        ([0, 0], [30, 20], [3, 2]),  # by size
        ([0], [7], [1]),
        ([0.1, 0.9], [5, 5], [1, 9]),
        ([1, 3], [5, 5], [1, 3]),  # relative to their sum
        ([0.5, 0, 0], [9, 30, 10], [4, 3, 1]),  # the others share the rest by size
        ([0.5, 0.5, 0], [3], [1]),  # a source without rows takes no part
        ([0, 0, 0], [2**40 + 1, 2**40 - 1, 1], [2**29, 2**29, 1]),  # rounded
    ],
)
def test_integer_weights(weights, sizes, expected):
    found = integer_weights(
        dict(zip('abc', weights, strict=False)), dict(zip('abc', sizes, strict=False))
    )
    assert list(found.values()) == expected and sum(expected) <= MAX_PERIOD


def test_weights_that_leave_nothing():
    with pytest.raises(UserError, match='data.sources.b.weight=0 takes .* sum to 1:'):
        integer_weights({'a': 1.0, 'b': 0.0}, {'a': 1, 'b': 1})


# ---- Permutations


@given(size=st.integers(1, 2**61), key=st.text(max_size=8), data=st.data())
def test_each_index_alone_and_any_shape(size, key, data):
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1)))
    together = permute(index, size, key)
    assert ((together >= 0) & (together < size)).all()
    assert permute(index[:1], size, key) == together[0]
    assert (permute(index[None], size, key) == together[None]).all()


def test_the_order_never_changes():
    """If these numbers change, existing runs can no longer be resumed."""
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


@given(size=st.integers(1, 3000), key=st.text(max_size=8))
def test_is_a_permutation(size, key):
    places = permute(np.arange(size), size, key)
    assert sorted(places.tolist()) == list(range(size))


@pytest.mark.parametrize('size', [2, 3, 5])
def test_small_sizes_get_every_order(size):
    orders = {tuple(permute(np.arange(size), size, str(key))) for key in range(1000)}
    assert len(orders) == math.factorial(size)


@pytest.mark.parametrize('index', [-1, 5])
def test_an_index_outside_is_refused(index):
    with pytest.raises(ValueError, match='outside 0 … 4'):
        permute(np.array([index]), 5, '')
