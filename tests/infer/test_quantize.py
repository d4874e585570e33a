"""int8 weights: the rounding of each number, and the scores of a quantised model."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.infer.engine import Engine
from gptjax.infer.quantize import Int8Matrix, cast_params, quantize_params
from gptjax.infer.request import SamplingParameters
from gptjax.models import gpt
from gptjax.models.cache import LayerCache, Page, empty_cache, empty_int8_cache
from tests import helpers
from tests.infer import engines

MODELS = {
    'default': dict(),
    'swiglu, grouped': dict(mlp='swiglu', num_kv_heads=2),
    'tied, biases': dict(
        tie_embeddings=True, bias=True, norm='layernorm', position='learned'
    ),
}


def random_model(name):
    model = helpers.model_settings(**MODELS[name])
    return model, engines.random_params(model)


@pytest.mark.parametrize('name', MODELS)
def test_matrices_are_int8_to_half_a_step(name):
    _, params = random_model(name)
    whole = gpt.unstack_layers(params)
    small = quantize_params(whole)
    is_small = lambda leaf: isinstance(leaf, Int8Matrix)
    leaves = jax.tree.leaves(small, is_leaf=is_small)
    pairs = list(zip(leaves, jax.tree.leaves(whole), strict=True))
    for leaf, exact in pairs:
        if is_small(leaf):
            assert leaf.numbers.dtype == 'int8' and leaf.numbers.shape == exact.shape
            error = np.abs(leaf.astype('float32') - exact)
            assert (error <= 0.5001 * leaf.scales).all()
        else:
            assert leaf is exact
    # All matrices of the layers and the head are quantised.
    per_layer = 7 if name.startswith('swiglu') else 6
    expected = 2 * per_layer + (not name.startswith('tied'))
    assert sum(is_small(leaf) for leaf in leaves) == expected


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_scores_are_those_of_the_dequantised_numbers(name):
    model, params = random_model(name)
    exact = compute_scores(model, params)
    weights = dict(convert=quantize_params), dict(convert=dequantized)
    cache = dict(new_cache=empty_int8_cache), dict(new_cache=empty_rounded_cache)
    both = weights[0] | cache[0], weights[1] | cache[1]
    scores = []
    for int8_options, float_options in (weights, cache, both):
        scores.append(compute_scores(model, params, **int8_options))
        expected = compute_scores(model, params, **float_options)
        # Rounding of sums of about a hundred float32 terms; quantisation changes far
        # more.
        np.testing.assert_allclose(scores[-1], expected, atol=1e-4)
        assert np.abs(scores[-1] - exact).max() > 1e-3
    assert not np.array_equal(scores[0], scores[1])


@pytest.mark.parametrize(
    'fields, convert, share',
    [
        (MODELS['swiglu, grouped'], lambda params: params, 0.51),
        # The embeddings are quantised too.
        (MODELS['tied, biases'], lambda params: params, 0.6),
        (dict(tie_embeddings=True), quantize_params, 0.9),
    ],
)
def test_casting_once_or_in_each_product_gives_the_same_logits(fields, convert, share):
    model = helpers.model_settings(dtype='bfloat16', **fields)
    whole = convert(gpt.unstack_layers(engines.random_params(model)))
    cast = cast_params(whole, model.dtype)
    sizes = [sum(x.nbytes for x in jax.tree.leaves(p)) for p in (cast, whole)]
    assert sizes[0] < share * sizes[1]

    @jax.jit
    def logits(params):
        tokens, positions = jnp.arange(3, 27).reshape(2, 12), jnp.arange(12)[None]
        cache = empty_cache(model, 2, 16)
        return gpt.decode(model, params, tokens, positions.repeat(2, 0), cache)[0]

    np.testing.assert_array_equal(logits(cast), logits(whole))
    # In float32, no array is cast.
    same = jax.tree.map(jnp.array_equal, cast_params(whole, 'float32'), whole)
    assert all(jax.tree.leaves(same))


def compute_scores(model, params, **options):
    """Log-probabilities of the tokens of a prompt."""
    engine = Engine(model, params, engines.tokenizer(), slots=2, **options)
    parameters = SamplingParameters(max_tokens=0, prompt_logprobs=True)
    reply = engine.complete([[*range(3, 31)]], parameters)[0]
    return np.array([token.logprob for token in reply.prompt[1:]])


def dequantized(params):
    """The float32 parameters that `quantize_params` rounds to."""
    is_small = lambda leaf: isinstance(leaf, Int8Matrix)
    floats = lambda leaf: leaf.astype('float32') if is_small(leaf) else leaf
    return jax.tree.map(floats, quantize_params(params), is_leaf=is_small)


class RoundedPage(NamedTuple):
    """A page of the float32 numbers that `Int8Page` rounds to."""

    cache: Page

    @property
    def size(self):
        return self.cache.size

    def write(self, positions_BT, keys_BTKH, values_BTKH, first_row=0):
        rounded = (_rounded(array) for array in (keys_BTKH, values_BTKH))
        return RoundedPage(self.cache.write(positions_BT, *rounded, first_row))

    def read(self, dtype):
        return self.cache.read(dtype)


def _rounded(x):
    step = jnp.abs(x).max(axis=-1, keepdims=True) / 127
    return jnp.round(x / step) * step


def empty_rounded_cache(settings, batch, length):
    return tuple(
        LayerCache(tuple(map(RoundedPage, layer.pages)))
        for layer in empty_cache(settings, batch, length)
    )
