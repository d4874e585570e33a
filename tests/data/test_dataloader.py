import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gptjax.data import dataloader
from gptjax.data.packed_dataset import PackedDataset

AXES = ('data', 'fsdp', 'tensor', 'context')
SPEC = PartitionSpec(('data', 'fsdp'), 'context')


def sharding(*sizes):
    devices = np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes)
    return NamedSharding(Mesh(devices, AXES), SPEC)


def take(run, count, start=0, placed=None, batch_size=8):
    rows = PackedDataset(run.prepared, 'train')
    return list(dataloader.training_batches(rows, 3, batch_size, placed, start, count))


def assert_equal(batches, others):
    for batch, other in zip(batches, others, strict=True):
        for name in dataloader.FIELDS:
            np.testing.assert_array_equal(batch[name], other[name])


MESHES = ('1111', '2111', '8111', '2212', '1222', '1118')


@pytest.mark.parametrize('sizes', MESHES)
def test_a_batch_is_the_same_on_every_mesh(run, sizes):
    placed = sharding(*map(int, sizes))
    batches = take(run, 3, placed=placed)
    for name, array in batches[0].items():
        assert (array.shape, array.dtype) == ((8, 16), dataloader.FIELDS[name])
        assert array.sharding == placed
    assert_equal(batches, take(run, 3))


def test_each_host_loads_its_rows_alone():
    """Two hosts of four devices each have half of the rows."""

    class OneOfTwoHosts:
        def __init__(self, whole, host):
            self.whole, self.host = whole, host

        def addressable_devices_indices_map(self, shape):
            indices = self.whole.devices_indices_map(shape)
            mine = self.whole.mesh.devices.ravel()[4 * self.host : 4 * self.host + 4]
            return {device: indices[device] for device in mine}

    whole = sharding(2, 2, 1, 2)
    rows = [
        dataloader.local_rows((8, 16), OneOfTwoHosts(whole, host)) for host in (0, 1)
    ]
    assert [r.tolist() for r in rows] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    replicated = NamedSharding(whole.mesh, PartitionSpec(None, 'context'))
    both = dataloader.local_rows((8, 16), OneOfTwoHosts(replicated, 1))
    assert both.tolist() == list(range(8))


def test_rows_of_one_host_are_placed_by_number(run, monkeypatch):
    """A process that holds rows 4 to 7 of 8."""
    (batch,) = take(run, 1)
    rows = np.arange(4, 8)
    local = {name: array[rows] for name, array in batch.items()}
    last = slice(6, 8), slice(8, 16)
    monkeypatch.setattr(
        jax, 'make_array_from_callback', lambda shape, sharding, part: part(last)
    )
    placed = dataloader.place_batch(local, rows, (8, 16), sharding(2, 2, 1, 2))
    for name, array in placed.items():
        np.testing.assert_array_equal(array, batch[name][last])


def test_seeking_is_iterating(run):
    whole = take(run, 30)
    for start in (1, 7, 29):
        assert_equal(take(run, 30 - start, start), whole[start:])
    rows = PackedDataset(run.prepared, 'train')
    infinite = dataloader.training_batches(rows, 3, 8, start_step=10**9)
    assert_equal([next(infinite)], take(run, 1, start=10**9))


def test_batches_are_parts_of_one_stream(run):
    large = take(run, 2, batch_size=12)
    small = take(run, 4, batch_size=6)
    for name in dataloader.FIELDS:
        np.testing.assert_array_equal(
            np.concatenate([batch[name] for batch in large]),
            np.concatenate([batch[name] for batch in small]),
        )


def test_block_size_changes_nothing(run, monkeypatch):
    expected = take(run, 11)
    for tokens in (1, 3 * 8 * 16, 10**9):
        monkeypatch.setattr(dataloader, 'BLOCK_TOKENS', tokens)
        assert_equal(take(run, 11), expected)


@pytest.mark.parametrize('sizes', [None, (2, 2, 1, 2)])
def test_validation_predicts_every_token_once(run, sizes):
    packed = PackedDataset(run.prepared, 'validation')
    placed = sizes and sharding(*sizes)
    batches = list(dataloader.validation_batches(packed, 8, placed))
    tokenizer = run.tokenizer
    expected = [
        token
        for pairs in run.documents['validation'].values()
        for _, text in pairs
        for token in [*tokenizer.encode(text), tokenizer.eos_id]
    ]
    targets = np.concatenate([np.asarray(batch['targets']) for batch in batches])
    weights = np.concatenate([np.asarray(batch['weights']) for batch in batches])
    assert len(targets) % 8 == 0
    assert sorted(targets[weights > 0].tolist()) == sorted(expected)
    assert_equal(batches, dataloader.validation_batches(packed, 8))
