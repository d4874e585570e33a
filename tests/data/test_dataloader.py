import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gptjax.core.console import UserError
from gptjax.data import dataloader
from gptjax.data.packed_dataset import PackedDataset

AXES = ('data', 'fsdp', 'tensor', 'context')
SPEC = PartitionSpec(('data', 'fsdp'), 'context')


def sharding(*sizes):
    devices = np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes)
    return NamedSharding(Mesh(devices, AXES), SPEC)


def take(run, count, start=0, placed=None, batch_size=8):
    return list(
        dataloader.training_batches(
            PackedDataset(run.prepared, 'train'),
            3,
            batch_size,
            placed,
            start,
            num_steps=count,
        )
    )


def assert_equal(batches, others):
    for batch, other in zip(batches, others, strict=True):
        for name in dataloader.FIELDS:
            np.testing.assert_array_equal(batch[name], other[name])


def test_shapes_and_dtypes(run):
    (batch,) = take(run, 1)
    assert {name: array.dtype for name, array in batch.items()} == dataloader.FIELDS
    assert {array.shape for array in batch.values()} == {(8, 16)}


@pytest.mark.parametrize(
    'sizes',
    [
        (1, 1, 1, 1),
        (2, 1, 1, 1),
        (8, 1, 1, 1),
        (2, 2, 1, 2),
        (1, 2, 2, 2),
        (1, 1, 1, 8),
    ],
)
def test_a_batch_is_the_same_on_every_mesh(run, sizes):
    placed = sharding(*sizes)
    batches = take(run, 3, placed=placed)
    for array in batches[0].values():
        assert array.shape == (8, 16) and array.sharding == placed
    assert_equal(batches, take(run, 3))


def test_each_host_loads_its_rows_alone(run):
    """Two hosts of four devices: each has half of the rows, and places them right."""

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
    # data that a host does not hold is never asked of it
    replicated = NamedSharding(whole.mesh, PartitionSpec(None, 'context'))
    both = dataloader.local_rows((8, 16), OneOfTwoHosts(replicated, 1))
    assert both.tolist() == list(range(8))


def test_part_of_the_rows_is_placed_by_number(run):
    """A process that holds rows 4 to 7 of 8."""
    (batch,) = take(run, 1)
    rows = np.arange(4, 8)
    local = {name: array[rows] for name, array in batch.items()}
    asked = []

    def make(shape, sharding, callback):
        asked.append(callback((slice(6, 8), slice(8, 16))))
        return asked[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'make_array_from_callback', make)
        placed = dataloader.place_batch(local, rows, (8, 16), sharding(2, 2, 1, 2))
    for name, array in placed.items():
        np.testing.assert_array_equal(array, batch[name][6:8, 8:])


def test_seeking_is_iterating(run):
    whole = take(run, 30)
    for start in (1, 7, 29):
        assert_equal(take(run, 30 - start, start), whole[start:])


def test_batches_without_end(run):
    batches = dataloader.training_batches(
        PackedDataset(run.prepared, 'train'), 3, 8, start_step=10**9
    )
    assert_equal([next(batches)], take(run, 1, start=10**9))


def test_the_batch_size_cuts_one_stream(run):
    large = take(run, 2, batch_size=12)
    small = take(run, 4, batch_size=6)
    for name in dataloader.FIELDS:
        np.testing.assert_array_equal(
            np.concatenate([batch[name] for batch in large]),
            np.concatenate([batch[name] for batch in small]),
        )


def test_blocks_change_nothing(run, monkeypatch):
    expected = take(run, 11)
    for tokens in (1, 3 * 8 * 16, 10**9):
        monkeypatch.setattr(dataloader, 'BLOCK_TOKENS', tokens)
        assert_equal(take(run, 11), expected)


@pytest.mark.parametrize('placed', [None, (2, 2, 1, 2)])
def test_an_epoch_counts_everything_once(run, placed):
    placed = placed and sharding(*placed)
    batches = list(
        dataloader.validation_batches(
            PackedDataset(run.prepared, 'validation'), 8, placed
        )
    )
    documents = [
        text for pairs in run.documents['validation'].values() for _, text in pairs
    ]
    tokenizer = run.tokenizer
    targets = np.concatenate([np.asarray(batch['targets']) for batch in batches])
    weights = np.concatenate([np.asarray(batch['weights']) for batch in batches])
    assert len(targets) % 8 == 0
    predicted = sorted(targets[weights > 0].tolist())
    tokens = [token for text in documents for token in tokenizer.encode(text)]
    assert predicted == sorted(tokens + [tokenizer.eos_id] * len(documents))
    assert_equal(
        batches,
        dataloader.validation_batches(PackedDataset(run.prepared, 'validation'), 8),
    )


def test_errors_come_from_the_call_itself(tmp_path):
    with pytest.raises(UserError, match='run the stage `prepare`'):
        dataloader.training_batches(PackedDataset(tmp_path, 'train'), 0, 8)
