"""The whole optimiser: compared with optax; masks, learning rates, averages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.common import base
from gptjax.core import schema
from gptjax.optim import optimizer

L, D, N, H, F, V = 2, 8, 2, 4, 32, 16


def make_params(seed=0):
    draw = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(draw.normal(size=shape), jnp.float32)

    return {
        'embed': {'token': normal(V, D)},
        'layers': {
            'attention_norm': {'scale': normal(L, D)},
            'attention': {
                'query': normal(L, D, N, H),
                'out': normal(L, N, H, D),
                'query_bias': normal(L, N, H),
                'query_norm': normal(L, H),
            },
            'mlp': {'up': normal(L, D, F), 'down': normal(L, F, D)},
        },
        'final_norm': {'scale': normal(D)},
        'head': {'kernel': normal(D, V)},
    }


def make_config(name, **fields):
    config = base()
    config.train.num_steps = 10
    config.optim.update(
        dict(name=name, learning_rate=0.1, schedule='constant', warmup_steps=0)
    )
    config.optim.update(dict(clip_norm=0.0, **fields))
    return config


def train(transform, params, steps=3):
    """Makes `steps` updates with gradients that differ from step to step."""
    state = jax.jit(transform.init)(params)
    update = jax.jit(transform.update)
    for step in range(steps):
        gradients = make_params(seed=step + 1)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_close(got, want, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, want)


DECAYED = {
    'embed': {'token': True},
    'layers': {
        'attention_norm': {'scale': False},
        'attention': {
            'query': True,
            'out': True,
            'query_bias': False,
            'query_norm': False,
        },
        'mlp': {'up': True, 'down': True},
    },
    'final_norm': {'scale': False},
    'head': {'kernel': True},
}


def test_matrices_and_embeddings_decay_and_vectors_do_not():
    params = make_params()
    both, decayed = dict(params, critic=params), dict(DECAYED, critic=DECAYED)
    assert jax.tree_util.tree_map_with_path(optimizer.is_decayed, both) == decayed


def test_a_matrix_of_the_layers_that_no_table_has_is_refused():
    params = make_params()
    params['layers']['mlp']['router'] = jnp.zeros((L, D, 4))
    with pytest.raises(AssertionError, match='router.* not in INPUT_AXES'):
        optimizer.make_optimizer(make_config('muon'), params)
    del params['layers']['mlp']['router']
    lora = {'layers': {'mlp': {'up': {'a': jnp.zeros((L, D, 2))}}}}
    for known in (params, dict(params, critic=params), lora):
        optimizer.make_optimizer(make_config('muon'), known)


@pytest.mark.parametrize(
    ('name', 'reference'),
    [
        ('adamw', optax.adamw(0.1, 0.9, 0.95, 1e-8, weight_decay=0.2, mask=DECAYED)),
        ('lion', optax.lion(0.1, 0.9, 0.95, weight_decay=0.2, mask=DECAYED)),
    ],
)
def test_equals_optaxs_own(name, reference):
    params = make_params()
    transform = optimizer.make_optimizer(make_config(name, weight_decay=0.2), params)
    got, _ = train(transform, params)
    want, _ = train(reference, params)
    assert_close(got, want, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize('name', schema.OPTIM['name'].range.choices)
def test_descends_a_quadratic(name):
    config = make_config(name, matrix_learning_rate=0.5, ema=0.5)
    config.train.num_steps = 60
    config.optim.schedule = 'linear'
    params, target = make_params(), make_params(seed=9)

    def loss(params):
        errors = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), params, target)
        return sum(jax.tree.leaves(errors))

    transform = optimizer.make_optimizer(config, params)

    @jax.jit
    def step(params, state):
        updates, state = transform.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, before = transform.init(params), loss(params)
    for _ in range(60):
        params, state = step(params, state)
    assert loss(params) < 0.2 * before
    assert loss(optimizer.ema_params(state, params)) < 0.2 * before


def test_each_group_has_its_learning_rate():
    params = make_params()
    config = make_config(
        'muon', matrix_learning_rate=0.5, embedding_scale=3.0, head_scale=7.0
    )
    optim = config.optim
    peaks = jax.tree_util.tree_map_with_path(
        lambda path, _: optimizer.peak_learning_rate(optim, path), params
    )
    assert peaks['embed']['token'] == pytest.approx(0.3)
    assert peaks['head']['kernel'] == pytest.approx(0.7)
    assert peaks['layers']['mlp'] == {'up': 0.5, 'down': 0.5}
    assert peaks['layers']['attention']['query_bias'] == pytest.approx(0.1)
    # The first update of Adam is the sign of the gradient times the learning rate.
    after, _ = train(optimizer.make_optimizer(config, params), params, steps=1)
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b), params, after)
    np.testing.assert_allclose(moved['embed']['token'], 0.3, rtol=1e-3)
    np.testing.assert_allclose(moved['head']['kernel'], 0.7, rtol=1e-3)
    np.testing.assert_allclose(moved['final_norm']['scale'], 0.1, rtol=1e-3)


def test_decay_is_in_proportion_to_the_learning_rate():
    params = make_params()
    config = make_config('muon', weight_decay=0.5, matrix_learning_rate=0.2)
    zero = jax.tree.map(jnp.zeros_like, params)
    transform = optimizer.make_optimizer(config, params)
    updates, _ = jax.jit(transform.update)(zero, transform.init(params), params)
    up = params['layers']['mlp']['up']
    np.testing.assert_allclose(updates['layers']['mlp']['up'], -0.1 * up, rtol=1e-6)
    np.testing.assert_array_equal(updates['final_norm']['scale'], 0.0)


def test_the_schedule_scales_the_update():
    params = make_params()
    config = make_config('lion')
    config.optim.update(dict(schedule='linear'))
    transform = optimizer.make_optimizer(config, params)
    state, gradients = transform.init(params), make_params(seed=1)
    update = jax.jit(transform.update)
    for step in range(3):
        updates, state = update(gradients, state, params)
        size = jnp.abs(updates['final_norm']['scale'])
        np.testing.assert_allclose(size, 0.1 * (1 - step / 10), rtol=1e-5)


def test_gradients_are_clipped_before_they_reach_the_moments():
    params, spike = make_params(), make_params(seed=2)
    norm = optax.tree.norm(spike)
    clipped = jax.tree.map(lambda g: g / norm, spike)

    def states_after(config, gradients):
        transform = optimizer.make_optimizer(config, params)
        state = jax.jit(transform.init)(params)
        return jax.jit(transform.update)(gradients, state, params)[1]

    config = make_config('adamw')
    config.optim.clip_norm = 1.0
    states = states_after(config, spike)[1:]  # without the state of the clipping
    assert_close(states, states_after(make_config('adamw'), clipped), rtol=1e-5)


def test_ema_by_hand():
    params = make_params()
    plain = optimizer.make_optimizer(make_config('adamw'), params)
    assert optimizer.ema_params(plain.init(params), params) is params
    transform = optimizer.make_optimizer(make_config('adamw', ema=0.25), params)
    first, state = train(transform, params, steps=1)
    # n = 1: d = min(0.25, 2 / 11)
    want = jax.tree.map(lambda w, v: 2 / 11 * w + 9 / 11 * v, params, first)
    assert_close(optimizer.ema_params(state, first), want, rtol=1e-5)
    second, state = train(transform, params, steps=2)
    # n = 2: d = min(0.25, 3 / 12), and 0.25 afterwards
    want = jax.tree.map(lambda w, v: 0.25 * w + 0.75 * v, want, second)
    assert_close(optimizer.ema_params(state, second), want, rtol=1e-5)


def test_the_first_average_is_a_copy_that_can_be_donated():
    params = make_params()
    transform = optimizer.make_optimizer(make_config('adamw', ema=0.9), params)
    average = optimizer.ema_params(transform.init(params), params)
    token = average['embed']['token']
    assert (
        token.unsafe_buffer_pointer()
        != params['embed']['token'].unsafe_buffer_pointer()
    )


@pytest.mark.parametrize('name', schema.OPTIM['name'].range.choices)
def test_state_is_made_from_shapes_and_mirrors_the_parameters(name):
    """The path of a state leaf ends with the path of its parameter."""
    shapes = jax.eval_shape(make_params)
    paths = {
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
    }
    transform = optimizer.make_optimizer(make_config(name, ema=0.9), shapes)
    state = jax.eval_shape(transform.init, shapes)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        assert any(name.endswith(p) for p in paths) or name.endswith('.count'), name
        assert leaf.dtype in (jnp.float32, jnp.int32)
