"""Log-probabilities and entropies, whole and in chunks, equal the full softmax."""

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.models import gpt, settings
from gptjax.parallel.sharding import batch_sharding
from gptjax.post.objectives.logprobs import hidden_logprobs, logits_logprobs
from tests import helpers
from tests.post import tiny

BATCH, SETTINGS = tiny.BATCH, tiny.SETTINGS


def test_against_the_full_softmax():
    params = tiny.params()
    ours = tiny.compute(SETTINGS, params, BATCH, 0.7)
    inputs = [BATCH[name] for name in ('inputs', 'segments', 'positions')]
    # The logits of the model are soft-capped first; the temperature comes after that.
    logits = jax.jit(lambda params: gpt.bind(SETTINGS, params)(*inputs))(params)
    logits = np.asarray(logits, np.float64) / 0.7
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.take_along_axis(p, BATCH['targets'][..., None], axis=-1)[..., 0]
    # Logits are float32 matrix products.
    np.testing.assert_allclose(ours[0], np.log(chosen), atol=2e-5)
    np.testing.assert_allclose(ours[1], -np.sum(p * np.log(p), axis=-1), atol=2e-5)
    assert all(x.dtype == np.float32 for x in ours)


def test_of_logits_that_are_large():
    logits = jnp.float32([[1e4, 0.0, 1e4 - 1], [0.0, 0.0, 0.0]])
    logprobs, entropy = logits_logprobs(logits, jnp.array([1, 2]))
    np.testing.assert_allclose(logprobs, [-1e4 - np.log1p(np.exp(-1)), -np.log(3)])
    p = 1 / (1 + np.exp(-1))
    binary = -p * np.log(p) - (1 - p) * np.log(1 - p)
    np.testing.assert_allclose(entropy, [binary, np.log(3)], rtol=1e-4)


def chunked_loss(model_settings, coefficients):
    """A function of (params, hidden, chunk) with a gradient for every output."""

    def loss(params, hidden, chunk):
        model = gpt.bind(model_settings, params)
        both = hidden_logprobs(model, hidden, BATCH['targets'], 0.7, chunk)
        pairs = zip(coefficients, both, strict=True)
        return sum(jnp.sum(factor * x) for factor, x in pairs), both

    return loss


def test_chunks_have_the_values_and_the_gradient_of_the_whole():
    rng = np.random.default_rng(0)
    B, T = BATCH['targets'].shape
    hidden = rng.normal(size=(B * T, SETTINGS.width)).astype(np.float32)
    loss = chunked_loss(SETTINGS, rng.normal(size=(2, B, T)).astype(np.float32))
    differentiate = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2
    )
    (_, whole), gradient = differentiate(tiny.params(), hidden, 0)
    # 7 parts of 20 tokens do not divide 128; 8 do.
    (_, parts), chunked_gradient = differentiate(tiny.params(), hidden, 20)
    # A few units in the last place of numbers up to 10, and of their sums.
    helpers.assert_trees_close(parts, whole, atol=5e-6)
    helpers.assert_trees_close(chunked_gradient, gradient, rtol=1e-4, atol=1e-5)


def test_chunks_need_less_memory():
    large = settings.resolve(helpers.config(**tiny.MODEL).model, vocab_size=4096)
    tokens = BATCH['targets'].size

    def temporary_bytes(chunk):
        hidden = jax.ShapeDtypeStruct((tokens, large.width), np.float32)
        gradient = jax.grad(chunked_loss(large, (1.0, 1.0)), has_aux=True)
        lowered = jax.jit(gradient, static_argnums=2).lower(
            gpt.abstract_params(large), hidden, chunk
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    logits_bytes = tokens * large.vocab_size * 4
    assert temporary_bytes(0) >= logits_bytes > 2 * temporary_bytes(8)


def test_layouts_equal_one_device():
    """Hidden states have shape (B, T, D) if the mesh splits time."""
    one = tiny.compute(SETTINGS, tiny.params(), BATCH, 0.7)
    mesh = helpers.mesh_of(data=2, context=2, tensor=2)
    with jax.set_mesh(mesh):
        batch = jax.device_put(BATCH, batch_sharding(mesh))
        several = tiny.compute(SETTINGS, tiny.params(), batch, 0.7, chunk=16)
    helpers.assert_trees_close(several, one, atol=2e-5)
