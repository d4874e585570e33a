"""Every mesh equals one device: losses and gradients. The shardings of the state."""

import itertools
from functools import lru_cache

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import tree_leaves_with_path as leaves_with_path

from gptjax.models import gpt, settings
from gptjax.optim.optimizer import make_optimizer
from gptjax.parallel.sharding import batch_sharding, state_shardings
from gptjax.train.checkpoint import name_of
from gptjax.train.losses import make_language_loss
from gptjax.train.state import abstract_state, new_state
from gptjax.train.step import make_train_step
from tests import helpers

# Every (data, fsdp, tensor, context) with product 8. Quick tests are those with all
# devices on one axis, and one that uses three axes.
QUICK = [(8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 8, 1), (1, 1, 1, 8), (1, 2, 2, 2)]
LAYOUTS = [  # each with the number of micro-batches
    pytest.param(sizes, 2, marks=() if sizes in QUICK else pytest.mark.slow)
    for sizes in itertools.product((1, 2, 4, 8), repeat=4)
    if np.prod(sizes) == 8
] + [pytest.param((1, 2, 2, 2), 1, marks=pytest.mark.slow)]
STEPS = 4


def make_config(heads=4, accumulation=1, optimizer='adamw'):
    config = helpers.config(num_heads=heads, width=32)
    config.optim.update(name=optimizer, learning_rate=1e-2, weight_decay=0.1)
    config.train.accumulation = accumulation
    return config


def begin(config, sizes, make_optimizer):
    """(state, step, mesh, settings) on a mesh; every mesh has the same parameters."""
    mesh = helpers.mesh_of(*sizes)
    model = settings.resolve(config.model, helpers.VOCAB)
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(config, gpt.abstract_params(model))
        abstract = abstract_state(
            gpt.abstract_params(model), optimizer, gpt.param_axes(model), mesh
        )
        place = lambda leaf, like: jax.device_put(np.asarray(leaf), like.sharding)
        state = new_state(initial_params(model), optimizer)
        state = jax.tree.map(place, state, abstract)
        loss_fn = make_language_loss(model, config.train)
        step = make_train_step(loss_fn, optimizer, abstract, config.train.accumulation)
    return state, step, mesh, model


@lru_cache
def initial_params(model):
    return jax.device_get(gpt.init_params(model, jax.random.key(0)))


def train(config, sizes):
    """The losses and gradient norms of some steps on a mesh, and the last state."""
    state, step, mesh, model = begin(config, sizes, make_optimizer)
    curve = []
    with jax.set_mesh(mesh):
        for number in range(STEPS):
            batch = helpers.packed_batch(number, 16)
            state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
            curve.append((float(metrics['loss']), float(metrics['grad_norm'])))
    return np.array(curve), state, mesh, model


def gradients(config, sizes):
    """The loss and the gradient of one batch, as arrays on the host."""
    # With plain gradient descent and learning rate 1, the update is the gradient.
    state, step, mesh, _ = begin(config, sizes, lambda *_: optax.sgd(1.0))
    before = jax.device_get(state.params)
    with jax.set_mesh(mesh):
        batch = jax.device_put(helpers.packed_batch(0, 16), batch_sharding(mesh))
        state, metrics = step(state, batch)
    after = jax.device_get(state.params)
    return float(metrics['loss']), jax.tree.map(lambda a, b: a - b, before, after)


@pytest.fixture(scope='module')
def one_device():
    return {
        accumulation: gradients(make_config(8, accumulation), (1, 1, 1, 1))
        for accumulation in (1, 2)
    }


@pytest.mark.parametrize('sizes, accumulation', LAYOUTS, ids=str)
def test_losses_and_gradients_equal_one_device(one_device, sizes, accumulation):
    loss, gradient = gradients(make_config(8, accumulation), sizes)
    expected_loss, expected = one_device[1]
    np.testing.assert_allclose(loss, expected_loss, rtol=2e-6)
    helpers.assert_trees_close(gradient, expected, rtol=1e-4, atol=2e-6)


def test_accumulation_weighs_by_tokens(one_device):
    (loss, whole), (loss_in_parts, in_parts) = one_device[1], one_device[2]
    np.testing.assert_allclose(loss, loss_in_parts, rtol=1e-6)
    helpers.assert_trees_close(whole, in_parts, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('optimizer', ['adamw', 'muon', 'adafactor', 'lion'])
@pytest.mark.parametrize('sizes', [(2, 2, 2, 1), (1, 2, 2, 2)], ids=str)
def test_the_state_keeps_its_shardings_over_steps(sizes, optimizer):
    config = make_config(4, 2, optimizer)
    config.model.bias = True
    config.optim.ema = 0.9
    curve, state, mesh, model = train(config, sizes)
    expected = state_shardings(state, gpt.param_axes(model), mesh)

    def check(path, leaf, sharding):
        name = jax.tree_util.keystr(path)
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), name

    jax.tree_util.tree_map_with_path(check, state, expected)
    # The rules really split the arrays: each device holds a part.
    up = state.params['layers']['mlp']['up']
    assert up.addressable_shards[0].data.size == up.size // (sizes[1] * sizes[2])
    mirrors = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if jax.tree_util.keystr(path).endswith("['mlp']['up']")
        and leaf.shape == up.shape
    ]
    for leaf in mirrors:
        assert (
            leaf.addressable_shards[0].data.size == up.addressable_shards[0].data.size
        )
    assert mirrors

    alone, *_ = train(config, (1, 1, 1, 1))
    # The sign in Lion and the root in Adam amplify rounding.
    np.testing.assert_allclose(curve, alone, rtol=2e-3)


# The sharding of each parameter with an axis that the mesh may split, written by hand.
SPLIT = {
    'embed/token': ('tensor', 'fsdp'),  # V, D
    'head/kernel': ('fsdp', 'tensor'),  # D, V
    'layers/attention/query': (None, 'fsdp', 'tensor'),  # L, D, N, H
    'layers/attention/key': (None, 'fsdp', 'tensor'),
    'layers/attention/value': (None, 'fsdp', 'tensor'),
    'layers/attention/out': (None, 'tensor', None, 'fsdp'),  # L, N, H, D
    'layers/attention/query_bias': (None, 'tensor'),  # L, N, H
    'layers/attention/key_bias': (None, 'tensor'),
    'layers/attention/value_bias': (None, 'tensor'),
    'layers/mlp/up': (None, 'fsdp', 'tensor'),  # L, D, F
    'layers/mlp/down': (None, 'tensor', 'fsdp'),  # L, F, D
    'layers/mlp/up_bias': (None, 'tensor'),  # L, F
}


@pytest.mark.parametrize('sizes', [(2, 2, 2, 1), (1, 1, 2, 4)], ids=str)
@pytest.mark.parametrize('optimizer', ['adamw', 'adafactor', 'lion', 'muon'])
def test_state_lives_where_its_parameter_does_and_the_rest_everywhere(optimizer, sizes):
    """Adafactor has placeholders and factors whose paths end like the parameters'."""
    config = make_config(4, optimizer=optimizer)
    # Matrices that Adafactor factors, and vectors that it does not.
    config.model.update(width=128, bias=True)
    config.optim.ema = 0.9
    mesh = helpers.mesh_of(*sizes)
    model = settings.resolve(config.model, helpers.VOCAB)
    shapes = gpt.abstract_params(model)
    abstract = abstract_state(
        shapes, make_optimizer(config, shapes), gpt.param_axes(model), mesh
    )
    names = {name_of(path): leaf.shape for path, leaf in leaves_with_path(shapes)}
    assert SPLIT.keys() <= names.keys()
    seen = set()
    for path, leaf in leaves_with_path(abstract):
        name = name_of(path)
        owner = next((param for param in names if name.endswith(f'/{param}')), None)
        mirrors = owner is not None and leaf.shape == names[owner]
        spec = SPLIT.get(owner, ()) if mirrors else ()
        expected = NamedSharding(mesh, PartitionSpec(*spec))
        assert leaf.sharding.is_equivalent_to(expected, len(leaf.shape)), name
        seen.add((owner, mirrors))
    assert ('layers/mlp/up_bias', True) in seen
    assert (('layers/mlp/up_bias', False) in seen) == (optimizer == 'adafactor')


@pytest.mark.slow
@pytest.mark.parametrize(
    'changes',
    [
        dict(num_kv_heads=2),
        dict(num_kv_heads=1, mlp='swiglu', windows=(8, 0)),
        dict(
            position='learned', norm='layernorm', mlp='gelu', bias=True, qk_norm=False
        ),
        dict(tie_embeddings=True, remat='full', unroll=2),
    ],
    ids=str,
)
def test_other_models_equal_one_device_too(changes):
    config = make_config(4)
    config.model.update(changes)
    expected_loss, expected = gradients(config, (1, 1, 1, 1))
    loss, gradient = gradients(config, (1, 2, 2, 2))
    np.testing.assert_allclose(loss, expected_loss, rtol=2e-6)
    helpers.assert_trees_close(gradient, expected, rtol=1e-4, atol=2e-6)
