import itertools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import common
from gptjax.core.console import UserError
from gptjax.parallel.mesh import make_mesh
from gptjax.parallel.sharding import constrain, partition_spec, put_on_mesh
from tests import helpers


def section(**sizes):
    config = common.base().mesh
    config.update(data=1)
    config.update(sizes)
    return config


def test_minus_one_takes_the_devices_that_are_left():
    mesh = make_mesh(section(data=-1, tensor=2))
    assert dict(mesh.shape) == dict(data=4, fsdp=1, tensor=2, context=1)


@pytest.mark.parametrize(
    'sizes, words',
    [
        (dict(tensor=16), 'needs 16 devices and there are 8'),
        (dict(data=2), 'uses 2 of 8 devices'),
        (dict(data=-1, fsdp=-1), 'mesh.data and mesh.fsdp are both -1'),
        (dict(data=-1, tensor=3), '8 devices do not divide by the 3'),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_by_field(sizes, words):
    with pytest.raises(UserError, match=words):
        make_mesh(section(**sizes))


def test_the_rules_place_axes_and_refuse_what_does_not_divide():
    mesh = helpers.mesh_of(fsdp=2, tensor=4)
    assert partition_spec(('embed', 'heads', None), (32, 4, 8), mesh) == P(
        'fsdp', 'tensor'
    )
    # Few key-value heads, or an indivisible vocabulary, are not split.
    assert partition_spec(('kv_heads',), (2,), mesh) == P()
    assert partition_spec(('vocab', 'embed'), (97, 32), mesh) == P(None, 'fsdp')
    with pytest.raises(UserError, match='model.num_heads=6 is not divisible by mesh.'):
        partition_spec(('heads',), (6,), mesh)


def test_constrain_places_inside_jit_and_is_nothing_without_a_mesh():
    x = jax.numpy.ones((8, 4))
    assert jax.jit(lambda x: constrain(x, 'batch', None))(x).shape == x.shape
    with jax.set_mesh(helpers.mesh_of(data=8)):
        y = jax.jit(lambda x: constrain(x, 'batch', None))(x)
    assert {shard.data.shape for shard in y.addressable_shards} == {(1, 4)}


@pytest.mark.parametrize(
    'sizes', [s for s in itertools.product((1, 2, 4, 8), repeat=4) if np.prod(s) == 8]
)
def test_put_on_mesh_splits_rows_and_tokens_on_every_mesh(sizes):
    mesh = helpers.mesh_of(*sizes)
    numbers = np.arange(8 * 3 * 8)
    batch = dict(
        rewards=numbers[:8],  # (B,)
        pairs=numbers.reshape(8, 24)[:, :3],  # (B, G): no axis of tokens
        inner=dict(inputs=numbers.reshape(8, 3, 8)),  # (B, G, T)
    )
    found = put_on_mesh(batch, mesh, without_tokens=('pairs',))
    jax.tree.map(np.testing.assert_array_equal, found, batch)
    data, fsdp, _, context = sizes
    rows = 8 // (data * fsdp)
    shapes = dict(
        rewards=(rows,), pairs=(rows, 3), inner=dict(inputs=(rows, 3, 8 // context))
    )
    shards = jax.tree.map(lambda x: x.sharding.shard_shape(x.shape), found)
    assert shards == shapes
