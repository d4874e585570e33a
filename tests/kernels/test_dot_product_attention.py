"""The reference equals a loop; attention in blocks and over pages equals both."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.kernels import dot_product_attention
from gptjax.kernels.dot_product_attention import (
    attention_reference,
    causal_attention,
    causal_mask,
    masked_attention,
)
from gptjax.models.cache import Page
from tests import helpers


def tensors(B=2, T=64, N=4, K=2, H=8, seed=0):
    """Queries, keys and values, large enough that the softmax is not uniform."""
    rng = np.random.default_rng(seed)
    shapes = [(B, T, N, H), (B, T, K, H), (B, T, K, H)]
    return [jnp.asarray(2 * rng.standard_normal(s), jnp.float32) for s in shapes]


def packed(T, B=2):
    return jnp.asarray(helpers.packed_batch(batch=B, context=T)['segments'])


def mask_of(segments_BT, window):
    """The mask of a packed batch, position by position."""
    B, T = segments_BT.shape
    mask = np.zeros((B, T, T), bool)
    for b in range(B):
        for t in range(T):
            for s in range(t + 1):
                near = window == 0 or t - s < window
                mask[b, t, s] = near and segments_BT[b, t] == segments_BT[b, s]
    return mask


def looped(query, key, value, mask, softcap):
    """The reference in float64, one query and head at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    B, T, N, H = query.shape
    group = N // key.shape[2]
    mixed = np.zeros(query.shape)
    for b, t, n in np.ndindex(B, T, N):
        seen = np.flatnonzero(mask[b, t])
        scores = key[b, seen, n // group] @ query[b, t, n] / np.sqrt(H)
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.exp(scores - scores.max())
        mixed[b, t, n] = weights / weights.sum() @ value[b, seen, n // group]
    return mixed


def test_causal_mask_by_hand():
    positions = jnp.arange(4)[None]
    mask = causal_mask(positions, positions, 2)[0].astype(int)
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    np.testing.assert_array_equal(mask, expected)
    without_window = causal_mask(positions, positions, 0)[0]
    np.testing.assert_array_equal(without_window, np.tri(4, dtype=bool))
    # Two rows decode one token each, at positions 2 and 0.
    mask = causal_mask(jnp.array([[2], [0]]), positions, 0)[:, 0].astype(int)
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0], [1, 0, 0, 0]])


@pytest.mark.parametrize('kv_heads', [1, 2, 4])
@pytest.mark.parametrize('softcap', [0.0, 1.5])
def test_the_reference_and_attention_to_a_page_equal_a_loop(kv_heads, softcap):
    query, keys, values = tensors(T=12, K=kv_heads)
    mask = mask_of(packed(12), window=0)
    reference = attention_reference(query, keys, values, jnp.asarray(mask), softcap)
    expected = looped(query, keys, values, mask, softcap)
    np.testing.assert_allclose(reference, expected, rtol=1e-4, atol=1e-5)
    pages = [Page(*(jnp.swapaxes(x, 1, 2) for x in (keys, values)))]
    ours = masked_attention(query, pages, jnp.asarray(mask), softcap)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kv_heads', [1, 4])
@pytest.mark.parametrize('window, hidden', [(0, 2), (7, 1), (7, 2)])
def test_pages_that_no_query_sees_are_not_read_and_change_nothing(
    kv_heads, window, hidden
):
    """Without a window only the last pages can be skipped."""
    query, keys, values = tensors(T=12, K=kv_heads)
    keys, values = (jnp.swapaxes(x, 1, 2) for x in (keys, values))
    cuts = [slice(0, 4), slice(4, 9), slice(9, 12)]
    pages = [Page(keys[:, :, cut], values[:, :, cut]) for cut in cuts]
    unread = list(pages)
    unread[hidden] = Page(*(jnp.full_like(x, np.nan) for x in pages[hidden]))
    attend = jax.jit(partial(masked_attention, window=window))

    # The first row sees all earlier keys except one page. The second row sees no key
    # in `alone`, and all earlier keys in `both`.
    alone = np.stack([np.tri(12, dtype=bool), np.zeros((12, 12), bool)])
    alone[0, :, cuts[hidden]] = False
    both = np.stack([alone[0], np.tri(12, dtype=bool)])
    ours = attend(query, unread, alone)
    assert np.isfinite(ours).all()
    together = attend(query, pages, both)
    np.testing.assert_array_equal(ours[0], together[0])
    plain = (jnp.swapaxes(x, 1, 2) for x in (keys, values))
    expected = attention_reference(query, *plain, both)
    np.testing.assert_allclose(together, expected, rtol=1e-4, atol=1e-5)


# 64 tokens are computed in blocks, 12 are not.
@pytest.mark.parametrize(
    'T, kv_heads, window, softcap', [(64, 4, 0, 0.0), (64, 2, 20, 1.5), (12, 1, 3, 1.5)]
)
def test_causal_attention_and_its_gradient_equal_the_reference(
    T, kv_heads, window, softcap
):
    arrays = tensors(T=T, K=kv_heads)
    segments = packed(T)
    mask = jnp.asarray(mask_of(np.asarray(segments), window))
    upstream = jnp.cos(jnp.arange(arrays[0].size)).reshape(arrays[0].shape)

    def in_blocks(q, k, v):
        return causal_attention(q, k, v, segments, window, softcap)

    def plain(q, k, v):
        return attention_reference(q, k, v, mask, softcap)

    @partial(jax.jit, static_argnums=0)
    def both(attention, arrays):
        mixed, pull = jax.vjp(attention, *arrays)
        return mixed, pull(upstream)

    ours, expected = both(in_blocks, arrays), both(plain, arrays)
    helpers.assert_trees_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_keeps_scores_in_float32():
    # The scores are 256 + s / 2. bfloat16 would round them all to 256 or 258.
    T = 4
    query = jnp.tile(jnp.array([32.0, 2.0, 0.0, 0.0]), (1, T, 1, 1))
    key = jnp.stack([jnp.array([16.0, s / 2, 0.0, 0.0]) for s in range(T)])[
        None, :, None
    ]
    value = jnp.eye(T)[None, :, None]
    arrays = [x.astype(jnp.bfloat16) for x in (query, key, value)]
    ours = causal_attention(*arrays, jnp.ones((1, T), jnp.int32))
    assert ours.dtype == jnp.bfloat16
    probabilities = np.exp(np.arange(T) / 2) / np.exp(np.arange(T) / 2).sum()
    last = ours[0, -1, 0].astype(jnp.float32)
    np.testing.assert_allclose(last, probabilities, rtol=1e-2)


@pytest.mark.parametrize('T', [12, 64])
def test_dropout_is_applied_to_every_probability_once(T):
    arrays = tensors(T=T)
    segments = packed(T)
    seen = []

    def dropout(start):
        def halve(probabilities):
            seen.append((start, probabilities.shape[2]))
            return probabilities / 2

        return halve

    attend = jax.jit(partial(causal_attention, dropout=dropout))
    plain = jax.jit(causal_attention)(*arrays, segments)
    np.testing.assert_allclose(
        attend(*arrays, segments), plain / 2, rtol=1e-4, atol=1e-5
    )
    queries = [start + i for start, size in seen for i in range(size)]
    assert queries == list(range(T))


def test_large_blocks_use_chunks_and_less_memory(monkeypatch):
    T, N = 60, 4  # one block of 14400 scores, or ten chunks
    arrays = tensors(B=1, T=T, N=N, K=2)
    segments = packed(T, B=1)

    def run():
        @jax.jit
        def pulled(arrays):
            attend = partial(causal_attention, segments_BT=segments, softcap=1.5)
            mixed, pull = jax.vjp(attend, *arrays)
            return mixed, pull(jnp.cos(mixed))

        compiled = pulled.lower(arrays).compile()
        return compiled(arrays), compiled.memory_analysis().temp_size_in_bytes

    whole, whole_bytes = run()
    monkeypatch.setattr(dot_product_attention, 'MAX_SCORES', N * T * 6)
    in_chunks, chunk_bytes = run()
    helpers.assert_trees_close(in_chunks, whole, rtol=1e-4, atol=1e-5)
    assert chunk_bytes < whole_bytes / 2


def test_dropout_differs_between_chunks(monkeypatch):
    arrays, segments = tensors(T=64, B=1), packed(64, B=1)
    number = lambda start: lambda probabilities: probabilities * start
    plain = jax.jit(causal_attention)(*arrays, segments)
    four_queries = 4 * 64 * 4
    monkeypatch.setattr(dot_product_attention, 'MAX_SCORES', four_queries)
    attend = jax.jit(partial(causal_attention, dropout=number))
    factors = attend(*arrays, segments) / plain
    # A chunk has every fourth query of a block of 16.
    expected = [start + i % 4 for start in range(0, 64, 16) for i in range(16)]
    np.testing.assert_allclose(factors[0, :, 0, 0], expected, rtol=1e-4)
