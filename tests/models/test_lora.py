"""Low-rank adaptation: at first the base; merged what it is apart; trained alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.models import gpt, lora
from gptjax.parallel.sharding import batch_sharding, partition_spec
from gptjax.train.losses import make_language_loss
from gptjax.train.sft import make_adapted_loss
from tests import helpers

ALL = ('query', 'key', 'value', 'out', 'up', 'down', 'gate')


def section(rank=4, alpha=8.0, targets=('query', 'value', 'out', 'down')):
    return ConfigDict(dict(rank=rank, alpha=alpha, targets=targets))


def adapters(settings, its, seed=1):
    """A and B where neither is zero."""
    params = lora.init_params(settings, its, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noise = [
        leaf + 0.05 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, noise)


def loss_of(settings):
    return make_language_loss(settings, helpers.config().train)


@pytest.fixture(scope='module')
def model():
    settings = helpers.model_settings(num_kv_heads=2)
    return settings, gpt.init_params(settings, jax.random.key(0))


def test_the_first_model_is_the_base_exactly(model):
    settings, base = model
    params = lora.init_params(settings, section(), jax.random.key(0))
    assert not any(np.any(leaf['b']) for leaf in params['layers']['mlp'].values())
    loss_fn, batch = loss_of(settings), helpers.packed_batch()
    adapted = make_adapted_loss(loss_fn, 2.0)
    plain = jax.jit(loss_fn)(base, batch, None)[0]
    assert jax.jit(adapted)(params, batch, None, base)[0] == plain
    helpers.assert_trees_close(lora.merge(base, params, 2.0), base)


@pytest.mark.parametrize('mlp', ('relu2', 'swiglu'))
def test_merged_is_unmerged(mlp):
    settings = helpers.model_settings(num_kv_heads=2, mlp=mlp)
    base = gpt.init_params(settings, jax.random.key(0))
    its = section(targets=ALL if mlp == 'swiglu' else ALL[:-1])
    params, batch = adapters(settings, its), helpers.packed_batch()
    scale = lora.lora_scale(its)
    assert scale == 2.0
    merged = lora.merge(base, params, scale)
    adapted = lora.adapt(base, params, scale)
    arguments = [batch[name] for name in ('inputs', 'segments', 'positions')]
    whole = gpt.bind(settings, merged)(*arguments)
    parts = gpt.bind(settings, adapted)(*arguments)
    # Some sums of the product are taken in another order.
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)
    without = gpt.bind(settings, base)(*arguments)
    assert np.abs(parts - without).max() > 0.01
    # By hand, for the first layer of one matrix of three axes on each side.
    A, B = (params['layers']['attention']['out'][name] for name in 'ab')
    product = np.einsum('LNHr,LrD->LNHD', A, B)
    np.testing.assert_allclose(
        merged['layers']['attention']['out'],
        base['layers']['attention']['out'] + scale * product,
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.slow
def test_gradients_are_those_of_the_whole_matrix_projected(model):
    settings, base = model
    its = section()
    params, batch, scale = adapters(settings, its), helpers.packed_batch(), 2.0
    loss_fn = loss_of(settings)
    adapted = make_adapted_loss(loss_fn, scale)
    found = jax.grad(lambda p: adapted(p, batch, None, base)[0])(params)
    merged = lora.merge(base, params, scale)
    whole = jax.grad(lambda p: loss_fn(p, batch, None)[0])(merged)
    dW = whole['layers']['mlp']['down']
    A, B = (params['layers']['mlp']['down'][name] for name in 'ab')
    mine = found['layers']['mlp']['down']
    for name, expected in (
        ('a', scale * jnp.einsum('LFD,LrD->LFr', dW, B)),
        ('b', scale * jnp.einsum('LFr,LFD->LrD', A, dW)),
    ):
        # Float32 sums over 256 tokens in another order.
        np.testing.assert_allclose(mine[name], expected, rtol=1e-3, atol=1e-4)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(found)) < sum(
        np.prod(leaf.shape) for leaf in jax.tree.leaves(base)
    )


@pytest.mark.slow
def test_shards_equal_one_device(model):
    settings, base = model
    its = section()
    params = adapters(settings, its)
    adapted = make_adapted_loss(loss_of(settings), 2.0)
    gradient = jax.value_and_grad(lambda p, b, w: adapted(p, b, None, w)[0])
    batch = helpers.packed_batch()
    alone = jax.jit(gradient)(params, batch, base)
    mesh = helpers.mesh_of(data=2, fsdp=2, tensor=2)

    def place(tree, axes):
        return jax.tree.map(
            lambda leaf, names: jax.device_put(
                leaf,
                jax.sharding.NamedSharding(
                    mesh, partition_spec(names, leaf.shape, mesh)
                ),
            ),
            tree,
            axes,
        )

    with jax.set_mesh(mesh):
        spread = jax.jit(gradient)(
            place(params, lora.param_axes(settings, its)),
            jax.device_put(batch, batch_sharding(mesh)),
            place(base, gpt.param_axes(settings)),
        )
    np.testing.assert_allclose(spread[0], alone[0], rtol=1e-5)
    helpers.assert_trees_close(spread[1], alone[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(targets=('query', 'gate')), "no 'gate': use down, key, out"),
        (dict(targets=()), 'lora.targets is empty'),
        (dict(rank=-1), 'lora.rank=-1'),
        (dict(rank=64), 'has a rank of 32 at most'),
    ],
    ids=str,
)
def test_what_cannot_be_adapted(model, change, message):
    with pytest.raises(UserError, match=message):
        lora.init_params(model[0], section(**change), jax.random.key(0))
