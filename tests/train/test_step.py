"""One update: accumulation, skipped bad steps, the schedule, donation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.common import base
from gptjax.optim.optimizer import make_optimizer
from gptjax.parallel.sharding import batch_sharding
from gptjax.train.state import abstract_state, create_state
from gptjax.train.step import make_train_step
from tests import helpers


def loss_fn(params, batch, key):
    """Weighted squared error of a linear map: (B, T) targets from (B, T) inputs."""
    error = batch['inputs'] * params['slope'] + params['offset'] - batch['targets']
    weights = batch['weights']
    total = jnp.sum(weights * error**2)
    return total, dict(loss=total, tokens=jnp.sum(weights))


def batch_of(inputs, targets, weights, mesh=None):
    arrays = dict(inputs=inputs, targets=targets, weights=weights)
    place = batch_sharding(mesh or helpers.mesh_of())
    return {
        name: jax.device_put(np.asarray(value, np.float32), place)
        for name, value in arrays.items()
    }


def rows(mesh=None, batch=4):
    """A random batch; row i has i + 1 tokens."""
    rng = np.random.default_rng(0)
    weights = np.tri(batch, 6)
    shape = (batch, 6)
    return batch_of(rng.normal(size=shape), rng.normal(size=shape), weights, mesh)


def begin(optimizer, loss_fn=loss_fn, mesh=None, **options):
    """(state, step), with the two parameters of `loss_fn`."""

    def init(key):
        return dict(slope=jnp.float32(0.5), offset=jnp.float32(0.25))

    key, axes = jax.random.key(0), dict(slope=(), offset=())
    shapes = jax.eval_shape(init, key)
    abstract = abstract_state(shapes, optimizer, axes, mesh or helpers.mesh_of())
    step = make_train_step(loss_fn, optimizer, abstract, **options)
    return create_state(init, optimizer, abstract, key), step


def test_update_by_hand():
    state, step = begin(optax.sgd(0.1))
    # errors 2 * 0.5 + 0.25 - 1 = 0.25 (weight 1) and 1 * 0.5 + 0.25 = 0.75 (weight 3)
    batch = batch_of([[2, 1]], [[1, 0]], [[1, 3]])
    before = state
    state, metrics = step(state, batch)
    slope = (2 * 0.25 * 2 * 1 + 2 * 0.75 * 1 * 3) / 4
    offset = (2 * 0.25 * 1 + 2 * 0.75 * 3) / 4
    assert state.params['slope'] == pytest.approx(0.5 - 0.1 * slope)
    assert state.params['offset'] == pytest.approx(0.25 - 0.1 * offset)
    assert metrics['loss'] == pytest.approx((0.25**2 + 3 * 0.75**2) / 4)
    assert metrics['grad_norm'] == pytest.approx(np.hypot(slope, offset))
    assert metrics['tokens'] == 4 and metrics['good'] == 1 and state.step == 1
    # The previous state was donated.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))


@pytest.mark.parametrize('accumulation, data', ((2, 1), (4, 1), (2, 2)))
def test_micro_batches_count_by_their_tokens(accumulation, data):
    mesh = helpers.mesh_of(data=data)
    with jax.set_mesh(mesh):
        state, whole = begin(optax.sgd(0.1), mesh=mesh)
        expected, expected_metrics = whole(state, rows(mesh))
        state, parts = begin(optax.sgd(0.1), mesh=mesh, accumulation=accumulation)
        state, metrics = parts(state, rows(mesh))
    helpers.assert_trees_close(state, expected, rtol=1e-6)
    helpers.assert_trees_close(metrics, expected_metrics, rtol=1e-6)
    assert metrics['tokens'] == 1 + 2 + 3 + 4


@pytest.mark.parametrize('accumulation', (1, 2))
@pytest.mark.parametrize('poison', (np.nan, np.inf, 3e38))
def test_a_bad_step_changes_nothing_but_the_step_number(poison, accumulation):
    state, step = begin(optax.adam(0.1), accumulation=accumulation)
    state, _ = step(state, rows())
    before = jax.device_get(state)
    batch = rows()
    inputs = np.array(batch['inputs'])
    inputs[3, 0] = poison  # 3e38 squared is infinite: only the loss overflows
    state, metrics = step(state, dict(batch, inputs=jnp.asarray(inputs)))
    assert metrics['good'] == 0
    assert state.step == before.step + 1
    helpers.assert_trees_close(state.params, before.params)
    helpers.assert_trees_close(state.opt_state, before.opt_state)
    state, metrics = step(state, rows())
    assert metrics['good'] == 1
    assert state.params['slope'] != before.params['slope']


def test_in_a_bad_step_only_the_schedule_advances():
    config = base()
    config.train.num_steps = 5
    config.optim.update(name='lion', learning_rate=0.1, schedule='linear')
    config.optim.update(warmup_steps=0, ema=0.5, clip_norm=0.0)
    params = dict(slope=jnp.float32(0.5), offset=jnp.float32(0.25))
    state, step = begin(make_optimizer(config, params))
    good, bad = rows(), rows()
    bad['inputs'] = bad['inputs'] * jnp.nan
    state, _ = step(state, good)
    before = jax.device_get(state)
    state, metrics = step(state, bad)
    assert metrics['good'] == 0

    def leaves(state):
        """The state without the count of the schedule."""
        is_schedule = lambda state: isinstance(state, optax.ScaleByScheduleState)
        states = [inner for inner in state.opt_state if not is_schedule(inner)]
        return jax.device_get((state.params, states))

    helpers.assert_trees_close(leaves(state), leaves(before))
    state, metrics = step(state, good)
    assert metrics['good'] == 1
    # Lion changes each parameter by the learning rate, in step 2 of 5: 0.1 (1 - 2/5).
    moved = abs(float(state.params['slope']) - float(before.params['slope']))
    assert moved == pytest.approx(0.06, rel=1e-6)


def test_a_finite_loss_with_a_bad_gradient_is_a_bad_step():
    def root(params, batch, key):
        total = jnp.sum(jnp.sqrt(params['slope'] * 0.0) + params['offset'])
        return total, dict(loss=total, tokens=jnp.float32(1))

    state, step = begin(optax.sgd(0.1), root)
    state, metrics = step(state, rows())
    assert np.isfinite(metrics['loss']) and metrics['good'] == 0
    assert state.params['offset'] == 0.25


def test_a_batch_without_tokens_changes_nothing_and_is_finite():
    state, step = begin(optax.adamw(0.1, weight_decay=0.1))
    state, _ = step(state, rows())  # from here on, momentum would move it
    before = jax.device_get(state)
    batch = rows()
    batch['weights'] = 0 * batch['weights']
    state, metrics = step(state, batch)
    assert metrics['loss'] == 0 and metrics['good'] == 1
    assert state.step == before.step + 1
    helpers.assert_trees_close(state.params, before.params)
    helpers.assert_trees_close(state.opt_state, before.opt_state)


def test_dropout_keys_come_from_seed_step_and_micro_batch():
    def noise(params, batch, key):
        total = jax.random.uniform(key) + 0 * params['slope']
        return total, dict(loss=total, tokens=jnp.float32(1))

    def losses(seed, accumulation=1):
        state, step = begin(optax.sgd(0.1), noise, seed=seed, accumulation=accumulation)
        values = []
        for _ in range(2):
            state, metrics = step(state, rows())
            values.append(float(metrics['loss']))
        return values

    assert losses(0) == losses(0)
    assert len({*losses(0), *losses(1), *losses(0, 2)}) == 6


def test_a_new_state_has_the_dtypes_of_its_description():
    """Weights that were imported in bfloat16 are trained in float32."""
    optimizer, mesh = optax.adam(0.1), helpers.mesh_of()
    axes = dict(slope=())
    shapes = dict(slope=jax.ShapeDtypeStruct((), jnp.float32))
    abstract = abstract_state(shapes, optimizer, axes, mesh)
    given = dict(slope=jnp.bfloat16(0.5))
    state = create_state(lambda params: params, optimizer, abstract, given)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, (state, abstract))
    assert dtypes[0] == dtypes[1]
