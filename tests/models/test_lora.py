"""Low-rank adaptation: the initial model, merging, gradients and shards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.models import gpt, lora
from gptjax.models.parameter_count import size
from gptjax.parallel.sharding import batch_sharding, state_shardings
from gptjax.train.losses import make_language_loss
from gptjax.train.sft import make_adapted_loss
from tests import helpers

ALL = ('query', 'key', 'value', 'out', 'up', 'down', 'gate')


def section(rank=4, alpha=8.0, targets=('query', 'value', 'out', 'down')):
    return ConfigDict(dict(rank=rank, alpha=alpha, targets=targets))


def random_adapters(settings, config, seed=1):
    """Makes both A and B different from zero."""
    params = lora.init_params(settings, config, jax.random.key(seed))
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


def test_the_initial_model_equals_the_base(model):
    settings, base = model
    params = lora.init_params(settings, section(), jax.random.key(0))
    assert not any(np.any(leaf['b']) for leaf in params['layers']['mlp'].values())
    loss_fn, batch = loss_of(settings), helpers.packed_batch()
    adapted = make_adapted_loss(loss_fn, 2.0)
    plain = jax.jit(loss_fn)(base, batch, None)[0]
    assert jax.jit(adapted)(params, batch, None, base)[0] == plain
    helpers.assert_trees_close(lora.merge(base, params, 2.0), base)


@pytest.mark.parametrize('mlp', ('relu2', 'swiglu'))
def test_merged_and_unmerged_weights_give_the_same_logits(mlp):
    settings = helpers.model_settings(num_kv_heads=2, mlp=mlp)
    base = gpt.init_params(settings, jax.random.key(0))
    config = section(targets=ALL if mlp == 'swiglu' else ALL[:-1])
    params, batch = random_adapters(settings, config), helpers.packed_batch()
    scale = lora.lora_scale(config)
    assert scale == 2.0
    merged = lora.merge(base, params, scale)
    adapted = lora.adapt(base, params, scale)
    arguments = [batch[name] for name in ('inputs', 'segments', 'positions')]
    whole = gpt.bind(settings, merged)(*arguments)
    parts = gpt.bind(settings, adapted)(*arguments)
    # The order of some sums differs.
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)
    without = gpt.bind(settings, base)(*arguments)
    assert np.abs(parts - without).max() > 0.01
    A, B = (params['layers']['attention']['out'][name] for name in 'ab')
    product = np.einsum('LNHr,LrD->LNHD', A, B)
    np.testing.assert_allclose(
        merged['layers']['attention']['out'],
        base['layers']['attention']['out'] + scale * product,
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.slow
def test_gradients_are_projections_of_the_gradient_of_the_whole_matrix(model):
    settings, base = model
    params, scale = random_adapters(settings, section()), 2.0
    batch = helpers.packed_batch()
    loss_fn = loss_of(settings)
    adapted = make_adapted_loss(loss_fn, scale)
    gradient = jax.grad(lambda p: adapted(p, batch, None, base)[0])(params)
    merged = lora.merge(base, params, scale)
    whole = jax.grad(lambda p: loss_fn(p, batch, None)[0])(merged)
    dW = whole['layers']['mlp']['down']
    A, B = (params['layers']['mlp']['down'][name] for name in 'ab')
    gradient_AB = gradient['layers']['mlp']['down']
    for name, expected in (
        ('a', scale * jnp.einsum('LFD,LrD->LFr', dW, B)),
        ('b', scale * jnp.einsum('LFr,LFD->LrD', A, dW)),
    ):
        # The order of float32 sums over 256 tokens differs.
        np.testing.assert_allclose(gradient_AB[name], expected, rtol=1e-3, atol=1e-4)
    assert size(gradient) < size(base)


@pytest.mark.slow
def test_shards_equal_one_device(model):
    settings, base = model
    config = section()
    params = random_adapters(settings, config)
    adapted = make_adapted_loss(loss_of(settings), 2.0)
    gradient = jax.value_and_grad(lambda p, b, w: adapted(p, b, None, w)[0])
    batch = helpers.packed_batch()
    alone = jax.jit(gradient)(params, batch, base)
    mesh = helpers.mesh_of(data=2, fsdp=2, tensor=2)

    def place(tree, axes):
        shardings = state_shardings(tree, axes, mesh)
        return jax.device_put(tree, shardings)

    with jax.set_mesh(mesh):
        sharded = jax.jit(gradient)(
            place(params, lora.param_axes(settings, config)),
            jax.device_put(batch, batch_sharding(mesh)),
            place(base, gpt.param_axes(settings)),
        )
    np.testing.assert_allclose(sharded[0], alone[0], rtol=1e-5)
    helpers.assert_trees_close(sharded[1], alone[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(targets=('query', 'gate')), "no 'gate': use down, key, out"),
        (dict(targets=()), 'lora.targets is empty'),
        (dict(rank=-1), 'lora.rank=-1'),
        (dict(rank=64), 'has a rank of at most 32'),
    ],
    ids=str,
)
def test_invalid_settings_are_refused(model, change, message):
    with pytest.raises(UserError, match=message):
        lora.init_params(model[0], section(**change), jax.random.key(0))
