"""Weights in bytes: each number to half a step, the model nearly the same."""

import jax
import numpy as np
import pytest

from gptjax.infer.engine import Engine
from gptjax.infer.quantize import Int8Matrix, quantize_params
from gptjax.infer.request import Parameters
from gptjax.models import gpt
from gptjax.models.cache import empty_int8_cache
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
def test_matrices_are_bytes_to_half_a_step(name):
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
    # Every matrix of the layers, and the head.
    kinds = sum(is_small(leaf) for leaf in leaves)
    per_layer = 7 if name.startswith('swiglu') else 6
    assert kinds == 2 * per_layer + (not name.startswith('tied'))


@pytest.mark.parametrize('name', MODELS)
def test_the_engine_scores_nearly_the_same(name):
    model, params = random_model(name)
    how = Parameters(max_tokens=0, prompt_logprobs=True)
    prompt = [*range(3, 31)]
    scores = []
    for options in (
        dict(),
        dict(convert=quantize_params),
        dict(new_cache=empty_int8_cache),
        dict(convert=quantize_params, new_cache=empty_int8_cache),
    ):
        engine = Engine(model, params, engines.tokenizer(), slots=2, **options)
        reply = engine.complete([prompt], how)[0]
        scores.append(np.array([token.logprob for token in reply.prompt[1:]]))
    for other in scores[1:]:
        error = np.abs(other - scores[0])
        assert 0 < error.max() < 1.0 and error.mean() < 0.2
    assert not np.array_equal(scores[1], scores[2])
