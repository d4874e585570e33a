"""Cross-entropy compared with NumPy, and chunks compared with one chunk."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.kernels.cross_entropy import (
    cross_entropy,
    cross_entropy_reference,
    head_logits,
)
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
    # Some weights are zero, as for padding; the others are not one.
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
        return 3 * total, plain  # the factor detects a gradient that ignores upstream

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, head)


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_reference_equals_numpy(options):
    arrays = inputs()
    ours = jax.jit(partial(cross_entropy_reference, **options))(*arrays)
    # Measured: 7e-8, float32 rounding.
    np.testing.assert_allclose(ours, in_numpy(*arrays, **options), rtol=1e-6)


@pytest.mark.parametrize('options', [{}, EVERYTHING], ids=str)
def test_chunks_equal_one_chunk(options):
    arrays = inputs()
    whole = value_and_gradients(
        cross_entropy_reference, tuple(options.items()), *arrays
    )
    chunked = value_and_gradients(
        cross_entropy, (*options.items(), ('chunk', 6)), *arrays
    )
    # Measured: 1.4e-7, as the order of sums differs.
    helpers.assert_close_in_norm(chunked, whole, 1e-6)


@pytest.mark.parametrize('chunk', [0, 1, 5, 7, 1000])
def test_any_chunk_size_gives_the_same_sums(chunk):
    arrays = inputs((2, 12))
    ours = jax.jit(partial(cross_entropy, chunk=chunk, **EVERYTHING))(*arrays)
    expected = jax.jit(partial(cross_entropy_reference, **EVERYTHING))(*arrays)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize('chunk', [0, 6])
def test_the_plain_loss_has_no_gradient(chunk):
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
    # bfloat16 rounds the inputs to 2^-9 = 2e-3 (measured: 2e-4 of the sum), and for
    # gradients also probabilities and results (measured: 5e-3).
    np.testing.assert_allclose(total, whole[0][0], rtol=2**-9)
    helpers.assert_close_in_norm(gradients, whole[1], 4 * 2**-9)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
def test_logits_are_sums_in_float32(dtype):
    hidden, head, *_ = inputs((24,), D=64, dtype=dtype)
    exact = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64)
    ours = jax.jit(head_logits)(hidden, head)
    assert ours.dtype == jnp.float32
    # 64 additions of float32 (2^-24 each) of terms whose sizes sum to some 50
    np.testing.assert_allclose(ours, exact, rtol=0, atol=64 * 50 * 2**-24)


def test_gradients_of_logits_are_those_of_the_product():
    arrays = inputs()[:2]
    plain = lambda h, w: jnp.einsum('...D,DV->...V', h, w)

    def gradients(product):
        return jax.jit(jax.grad(lambda h, w: jnp.sum(jnp.sin(product(h, w))), (0, 1)))

    for dtype in (jnp.float32, jnp.bfloat16):
        ours, theirs = (
            gradients(product)(*(x.astype(dtype) for x in arrays))
            for product in (head_logits, plain)
        )
        assert [g.dtype for g in ours] == [dtype] * 2
        if dtype == jnp.float32:  # where the logits are the same, bit by bit
            helpers.assert_trees_close(ours, theirs)


def test_chunks_take_less_memory():
    # 512 tokens of 1024 logits are 2 MiB, 64 tokens of them an eighth of it.
    arrays = inputs((512,), D=8, V=1024)

    def temporaries(chunk):
        lowered = value_and_gradients.lower(cross_entropy, (('chunk', chunk),), *arrays)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(64) < temporaries(0) / 3
