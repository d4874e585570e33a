"""A checksum changes with every bit, and not with the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.train.checkpoint import checksums
from tests import helpers


def test_by_hand():
    tree = {'a': {'b': jnp.array([[3, 5], [7, -1]], jnp.int32)}}
    expected = (3 * 1 + 5 * 3 + 7 * 5 + (2**32 - 1) * 7) % 2**32
    assert checksums(tree) == {'a/b': expected}


@pytest.mark.parametrize('dtype', ('float32', 'bfloat16', 'int32', 'int8', 'bool'))
def test_every_bit_counts(dtype):
    array = (np.arange(40).reshape(8, 5) % 2).astype(jnp.dtype(dtype))
    before = checksums([jnp.asarray(array)])['0']
    rng = np.random.default_rng(0)
    for _ in range(20):
        changed = array.copy()
        raw = changed.reshape(-1).view(np.uint8)
        bit = 0 if dtype == 'bool' else rng.integers(8)
        raw[rng.integers(len(raw))] ^= np.uint8(1 << bit)
        assert checksums([jnp.asarray(changed)])['0'] != before
    swapped = array[::-1].copy()
    swapped[0, 0], swapped[0, 1] = array[0, 1], array[0, 0]
    assert checksums([jnp.asarray(swapped)])['0'] != before


def test_nan_and_zero_have_bits_too():
    ones = [np.float32(x) for x in (0.0, -0.0, np.nan, -np.nan, 1e-45)]
    found = [checksums([jnp.asarray([x])])['0'] for x in ones]
    assert len(set(found)) == 5


def test_the_same_on_every_mesh():
    array = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    expected = checksums([jnp.asarray(array)])
    mesh = helpers.mesh_of(fsdp=2, tensor=4)
    for spec in (('fsdp', 'tensor'), (None, 'tensor'), (('fsdp', 'tensor'),), ()):
        placed = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
        assert checksums([placed]) == expected
