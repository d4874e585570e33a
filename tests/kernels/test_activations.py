"""Activations equal their formulas, and GELU's gradient the one of autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.kernels import activations

POINTS = jnp.concatenate([jnp.linspace(-12.0, 12.0, 97), jnp.array([-1e4, 0.0, 1e4])])


def test_gelu_equals_its_formula():
    x = np.asarray(POINTS, np.float64)
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    expected = 0.5 * x * (1 + np.tanh(inner))
    np.testing.assert_allclose(activations.gelu(POINTS), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('dtype, tolerance', [('float32', 2e-6), ('bfloat16', 2e-2)])
def test_gradient_of_gelu_equals_the_derived_one(dtype, tolerance):
    x = POINTS[:-3].astype(dtype)
    upstream = jnp.cos(POINTS[:-3]).astype(dtype)

    def gradient(function, x):
        def total(x):
            return jnp.sum((function(x) * upstream).astype(jnp.float32))

        return jax.grad(total)(x)

    ours = gradient(activations.gelu, x)
    derived = gradient(activations.gelu_reference, x.astype(jnp.float32))
    assert ours.dtype == x.dtype
    np.testing.assert_allclose(
        ours.astype(jnp.float32), derived, rtol=tolerance, atol=tolerance
    )


def test_gradient_of_gelu_at_large_inputs_is_zero_or_one():
    slope = jax.vmap(jax.grad(activations.gelu))(jnp.array([-1e4, 1e4]))
    np.testing.assert_array_equal(slope, [0.0, 1.0])


def test_gelu_keeps_only_its_input_for_the_backward_pass():
    _, pull = jax.vjp(activations.gelu, POINTS)
    kept = [x for x in jax.tree.leaves(pull) if x.size >= POINTS.size]
    assert len(kept) == 1


def test_relu2_squares_the_positive_part():
    x = jnp.array([-2.0, 0.0, 0.5, 3.0])
    np.testing.assert_allclose(activations.relu2(x), [0, 0, 0.25, 9])
    slope = jax.vmap(jax.grad(activations.relu2))(x)
    np.testing.assert_allclose(slope, [0, 0, 1, 6])


def test_silu_product_equals_its_formula():
    gate, up = np.array([-1.0, 0.0, 2.0]), np.array([3.0, 4.0, -5.0])
    expected = gate / (1 + np.exp(-gate)) * up
    ours = activations.silu_product(jnp.asarray(gate), jnp.asarray(up))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
