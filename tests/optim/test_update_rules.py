"""Muon compared with NumPy, Adafactor of each layer compared with optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers
from optax.contrib._muon import orthogonalize_via_newton_schulz

from gptjax.optim import update_rules

A, B, C = update_rules.QUINTIC
# Without jit, each product would be compiled separately.
newton_schulz = jax.jit(update_rules.newton_schulz)


def newton_schulz_in_float64(matrix):
    x = matrix.astype(np.float64)
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    'shape', [(8, 8), (16, 24), (24, 16), (8, 32), (32, 8), (1, 5), (48, 192)]
)
def test_newton_schulz_is_jordans_iteration(shape):
    matrix = normal(*shape)
    expected = newton_schulz_in_float64(matrix)
    got = newton_schulz(jnp.asarray(matrix))
    np.testing.assert_allclose(got, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize('shape', [(64, 64), (64, 256)])
@pytest.mark.parametrize('smallest', [1e-2, 1e-5, 1e-9])
def test_newton_schulz_of_nearly_singular_matrices(shape, smallest):
    left, _, right = np.linalg.svd(normal(*shape), full_matrices=False)
    spectrum = np.geomspace(1.0, smallest, shape[0])
    matrix = ((left * spectrum) @ right).astype(np.float32)
    expected = newton_schulz_in_float64(matrix)
    got = newton_schulz(jnp.asarray(matrix))
    np.testing.assert_allclose(got, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize('shape', [(64, 64), (64, 256)])
def test_newton_schulz_brings_singular_values_near_one(shape):
    values = np.linalg.svd(newton_schulz(normal(*shape)), compute_uv=False)
    large = np.linalg.svd(normal(*shape), compute_uv=False)
    large = large / np.linalg.norm(large) > 1e-2
    assert 0.65 < values[large].min() and values.max() < 1.25


def test_newton_schulz_ignores_scale_and_sign_passes_through():
    matrix = jnp.asarray(normal(16, 64))
    one = newton_schulz(matrix)
    np.testing.assert_allclose(newton_schulz(-1e3 * matrix), -one, atol=1e-4)
    np.testing.assert_array_equal(newton_schulz(0 * matrix), 0 * matrix)


@pytest.mark.parametrize('shape', [(16, 16), (16, 64), (64, 16)])
def test_no_product_of_newton_schulz_is_rounded_on_an_accelerator(shape):
    jaxpr = str(jax.make_jaxpr(update_rules.newton_schulz)(normal(*shape)))
    # The precision of both inputs of each product.
    assert jaxpr.count('HIGHEST') == 2 * jaxpr.count('dot_general') > 20


def test_newton_schulz_agrees_with_optax():
    stack = jnp.asarray(normal(3, 16, 4, 8))  # (L, D, N, H)
    expected = orthogonalize_via_newton_schulz(
        stack,
        jnp.asarray(update_rules.QUINTIC),
        dimension_numbers=MuonDimensionNumbers(reduction_axis=1, output_axis=(2, 3)),
    )
    got = newton_schulz(stack.reshape(3, 16, 32)).reshape(stack.shape)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_muon_by_hand():
    """Two updates of every matrix of two layers, in NumPy as Jordan defines them."""
    shapes = {
        'attention': {
            'query': (2, 12, 3, 4),
            'key': (2, 12, 1, 4),
            'out': (2, 3, 4, 12),
        },
        'mlp': {'up': (2, 12, 48), 'down': (2, 48, 12)},
    }
    rows = {'query': 12, 'key': 12, 'out': 12, 'up': 12, 'down': 48}
    beta = 0.9
    gradients = [
        {
            'layers': {
                group: {name: normal(*shape, seed=seed) for name, shape in its.items()}
                for group, its in shapes.items()
            }
        }
        for seed in (1, 2)
    ]
    transform = update_rules.scale_by_muon(beta)
    state = transform.init(gradients[0])
    for gradient in gradients:
        updates, state = jax.jit(transform.update)(gradient, state)

    def expected(path, first, second):
        moment = (1 - beta) * first
        moment = beta * moment + (1 - beta) * second
        ahead = beta * moment + (1 - beta) * second
        matrices = ahead.reshape(2, rows[path[-1].key], -1)
        num_in, num_out = matrices.shape[1:]
        scale = max(1, num_out / num_in) ** 0.5
        result = [scale * newton_schulz_in_float64(matrix) for matrix in matrices]
        return np.stack(result).reshape(first.shape)

    wanted = jax.tree_util.tree_map_with_path(expected, *gradients)
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, atol=1e-4),
        updates,
        wanted,
    )


def test_a_layers_update_does_not_depend_on_the_other_layers():
    gradient = {'layers': {'mlp': {'up': normal(3, 8, 32)}}}
    alone = {'layers': {'mlp': {'up': gradient['layers']['mlp']['up'][1:2]}}}
    transform = update_rules.scale_by_muon(0.95)
    together, _ = transform.update(gradient, transform.init(gradient))
    apart, _ = transform.update(alone, transform.init(alone))
    np.testing.assert_allclose(
        together['layers']['mlp']['up'][1:2], apart['layers']['mlp']['up'], atol=1e-6
    )


def test_adafactor_treats_each_layer_as_optax_treats_a_matrix():
    params = {
        'layers': {'mlp': {'up': normal(2, 128, 256)}, 'norm': {'scale': normal(2, 8)}},
        'head': {'kernel': normal(128, 160)},
    }
    gradients = jax.tree.map(lambda x: np.float32(0.1) * x[..., ::-1], params)
    reference = optax.adafactor(learning_rate=1.0)

    def two_updates(transform, params, gradients):
        state = transform.init(params)
        for _ in range(2):
            updates, state = jax.jit(transform.update)(gradients, state, params)
        return updates

    got = two_updates(update_rules.adafactor(None, params), params, gradients)
    for layer in range(2):
        one, its = jax.tree.map(lambda x, i=layer: x[i], (params, gradients))
        want = two_updates(reference, one['layers'], its['layers'])
        jax.tree.map(
            lambda a, b, i=layer: np.testing.assert_allclose(a[i], -b, rtol=1e-5),
            got['layers'],
            want,
        )
    want = two_updates(reference, params['head'], gradients['head'])
    np.testing.assert_allclose(got['head']['kernel'], -want['kernel'], rtol=1e-5)
