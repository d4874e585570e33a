"""Cross-entropy against NumPy, and in chunks against all at once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.kernels.cross_entropy import cross_entropy, cross_entropy_reference
from tests import helpers

EVERYTHING = dict(softcap=2.0, z_loss=0.3, label_smoothing=0.2)
OPTIONS = [
    {},
    dict(z_loss=0.3),
    dict(label_smoothing=0.2),
    dict(softcap=2.0),
    EVERYTHING,
]


def inputs(tokens=(24,), D=8, V=32, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((*tokens, D)), dtype)
    head = jnp.asarray(rng.standard_normal((D, V)), dtype)
    targets = jnp.asarray(rng.integers(0, V, tokens), jnp.int32)
    # Some weigh nothing, as padding does; none weighs one by chance.
    weights = jnp.asarray(rng.uniform(0.1, 2, tokens) * (rng.random(tokens) > 0.2))
    return hidden, head, targets, weights.astype(jnp.float32)


def in_numpy(hidden, head, targets, weights, softcap=0, z_loss=0, label_smoothing=0):
    total = plain_total = 0.0
    for h, y, w in zip(np.asarray(hidden), targets, weights, strict=True):
        z = h.astype(np.float64) @ np.asarray(head, np.float64)
        if softcap:
            z = softcap * np.tanh(z / softcap)
        log_partition = np.log(np.exp(z).sum())
        plain = log_partition - z[y]
        uniform = np.mean(log_partition - z)
        loss = (1 - label_smoothing) * plain + label_smoothing * uniform
        total += w * (loss + z_loss * log_partition**2)
        plain_total += w * plain
    return total, plain_total


@partial(jax.jit, static_argnums=(0, 1))
def value_and_gradients(function, options, hidden, head, targets, weights):
    def loss(hidden, head):
        total, plain = function(hidden, head, targets, weights, **dict(options))
        return 3 * total, plain  # a factor shows gradients that ignore what follows

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, head)


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_reference_equals_numpy(options):
    arrays = inputs()
    ours = jax.jit(partial(cross_entropy_reference, **options))(*arrays)
    np.testing.assert_allclose(ours, in_numpy(*arrays, **options), rtol=1e-5)


@pytest.mark.parametrize('options', [{}, EVERYTHING], ids=str)
def test_chunks_equal_all_at_once(options):
    arrays = inputs()
    whole = value_and_gradients(
        cross_entropy_reference, tuple(options.items()), *arrays
    )
    chunked = value_and_gradients(
        cross_entropy, (*options.items(), ('chunk', 6)), *arrays
    )
    helpers.assert_trees_close(chunked, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('chunk', [0, 1, 5, 7, 1000])
def test_any_chunk_size_gives_the_same_sums(chunk):
    arrays = inputs((2, 12))
    ours = jax.jit(partial(cross_entropy, chunk=chunk, **EVERYTHING))(*arrays)
    expected = jax.jit(partial(cross_entropy_reference, **EVERYTHING))(*arrays)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize('chunk', [0, 6])
def test_no_gradient_flows_through_the_report(chunk):
    hidden, head, targets, weights = inputs()

    @jax.jit
    @jax.grad
    def gradient(hidden):
        return cross_entropy(hidden, head, targets, weights, chunk=chunk)[1]

    assert not np.any(gradient(hidden))


def test_gradients_have_the_inputs_dtype():
    arrays = inputs(dtype=jnp.bfloat16)
    exact = inputs()
    whole = value_and_gradients(cross_entropy_reference, (), *exact)
    (total, _), gradients = value_and_gradients(cross_entropy, (('chunk', 6),), *arrays)
    assert [g.dtype for g in gradients] == [jnp.bfloat16] * 2
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, whole[0][0], rtol=2e-2)
    for ours, expected in zip(gradients, whole[1], strict=True):
        np.testing.assert_allclose(ours.astype(jnp.float32), expected, atol=0.15)


def test_chunks_take_less_memory():
    # 512 tokens of 1024 logits are 2 MiB, 64 tokens of them an eighth of it.
    arrays = inputs((512,), D=8, V=1024)

    def temporaries(chunk):
        lowered = value_and_gradients.lower(cross_entropy, (('chunk', chunk),), *arrays)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(64) < temporaries(0) / 3
