"""Linear maps: several weights at once, and transposed weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.infer.quantize import quantize_params
from gptjax.models import gpt
from gptjax.models.cache import empty_cache
from gptjax.models.linear import INPUT_AXES, Transposed, linear, transpose_params
from gptjax.models.parameter_count import size
from tests import helpers
from tests.models.test_cache import MODELS


@pytest.mark.parametrize('T', [1, 3])
@pytest.mark.parametrize('name', MODELS)
def test_transposed_weights_compute_the_same(name, T):
    model = helpers.model_settings(**MODELS[name])
    rng = np.random.default_rng(0)
    draw = lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)
    params = jax.tree.map(draw, gpt.abstract_params(model))
    tokens = rng.integers(0, helpers.VOCAB, (1, T)).astype(np.int32)
    positions = np.arange(T, dtype=np.int32)[None]

    @jax.jit
    def both(params):
        plain = gpt.unstack_layers(params)
        return [
            gpt.decode(model, weights, tokens, positions, empty_cache(model, 1, 8))[0]
            for weights in (plain, transpose_params(plain))
        ]

    plain, transposed = both(params)
    # Measured: 0 to 3e-7, as the order of float32 sums differs.
    helpers.assert_close_in_norm(transposed, plain, 2e-6)


def test_transposed_parameters_hold_every_weight_once():
    model = helpers.model_settings(mlp='swiglu', num_kv_heads=1)
    params = gpt.unstack_layers(
        jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), gpt.abstract_params(model)
        )
    )
    transposed = transpose_params(params)
    assert size(transposed) == size(params)
    attention = transposed['layers'][0]['attention']
    N, K, H = model.num_heads, model.num_kv_heads, model.head_dim
    assert attention['query'].shapes == ((N, H), (K, H), (K, H))
    is_transposed = lambda x: isinstance(x, Transposed)
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        transposed, is_leaf=is_transposed
    ):
        plain_name = getattr(path[-1], 'key', None)
        assert is_transposed(leaf) or plain_name not in INPUT_AXES


def test_int8_weights_are_not_transposed():
    model = helpers.model_settings()
    params = jax.tree.map(
        lambda leaf: jnp.ones(leaf.shape, leaf.dtype), gpt.abstract_params(model)
    )
    quantized = quantize_params(gpt.unstack_layers(params))
    assert jax.tree.structure(transpose_params(quantized)) == jax.tree.structure(
        quantized
    )


def test_several_weights_of_one_input():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.float32)
    shapes = ((4, 2, 5), (4, 1, 5))
    weights = [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes]
    products = linear(x, *weights, outputs=2)
    for product, matrix in zip(products, weights, strict=True):
        np.testing.assert_allclose(product, np.einsum('bti,inh->btnh', x, matrix), 1e-5)
    # The two input axes of the weight are one axis of x.
    whole = linear(x, weights[0].reshape(2, 2, 10))
    assert whole.shape == (2, 3, math.prod(shapes[0][1:]))
    np.testing.assert_allclose(whole, products[0].reshape(2, 3, 10), 1e-6)
