"""Decoding with a cache equals the full forward."""

from functools import lru_cache

import jax
import numpy as np
import pytest

from gptjax.models import gpt
from gptjax.models.cache import empty_cache, empty_int8_cache
from tests import helpers

CONTEXT, CHUNK = 32, 4
MODELS = {
    'default': dict(),
    'grouped, windows, soft-caps': dict(
        num_kv_heads=2,
        windows=(5, 0),
        mlp='swiglu',
        attention_softcap=1.5,
        logit_softcap=2.0,
    ),
    'learned positions, biases, tied': dict(
        position='learned', norm='layernorm', mlp='gelu', bias=True, tie_embeddings=True
    ),
    'no positions, one key head': dict(position='none', num_kv_heads=1),
}
# Tokens that each row gets at a time: full chunks, ragged ones, one by one.
PACES = np.array([4, 3, 1])


@pytest.fixture(autouse=True)
def several_pages(monkeypatch):
    """Pages so small that what is written and read crosses their edges."""
    monkeypatch.setattr('gptjax.models.cache.MIN_PAGE_SIZE', 20)


@lru_cache
def decoder_of(name):
    """(settings, parameters, jitted decode of chunks)."""
    model = helpers.model_settings(**MODELS[name])
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32),
        gpt.abstract_params(model),
    )

    @jax.jit
    def decode(tokens, positions, cache):
        unstacked = gpt.unstack_layers(params)
        return gpt.decode(model, unstacked, tokens, positions, cache)

    return model, params, decode


def decode_in_chunks(name, tokens_BT, new_cache=empty_cache):
    """Logits (B, T, V) of whole rows, each row at its own pace."""
    model, _, decode = decoder_of(name)
    B, T = tokens_BT.shape
    cache = new_cache(model, B, T)
    logits = np.full((B, T, helpers.VOCAB), np.nan, np.float32)
    done = np.zeros(B, int)
    while done.min() < T:
        tokens = np.zeros((B, CHUNK), np.int32)
        positions = np.full((B, CHUNK), T, np.int32)
        takes = np.minimum(PACES, T - done)
        for b, (start, take) in enumerate(zip(done, takes, strict=True)):
            tokens[b, :take] = tokens_BT[b, start : start + take]
            positions[b, :take] = np.arange(start, start + take)
        chunk, cache = decode(tokens, positions, cache)
        for b, (start, take) in enumerate(zip(done, takes, strict=True)):
            logits[b, start : start + take] = chunk[b, :take]
        done += takes
    return logits


def random_tokens(seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, helpers.VOCAB, (3, CONTEXT)).astype(np.int32)


@pytest.mark.parametrize('name', MODELS)
def test_cached_decoding_equals_the_full_forward(name):
    model, params, _ = decoder_of(name)
    tokens = random_tokens()
    positions = np.broadcast_to(np.arange(CONTEXT, dtype=np.int32), tokens.shape)

    @jax.jit
    def full(params):
        return gpt.bind(model, params)(tokens, np.ones_like(tokens), positions)

    ours = decode_in_chunks(name, tokens)
    # Found: 3e-7 to 5e-7, some roundings of float32 (6e-8) through two layers.
    helpers.assert_close_in_norm(ours, full(params), 2e-6)


def test_a_row_does_not_depend_on_its_neighbours():
    tokens, others = random_tokens(0), random_tokens(1)
    others[1] = tokens[1]
    ours, mixed = (decode_in_chunks('default', t) for t in (tokens, others))
    np.testing.assert_array_equal(ours[1], mixed[1])
    assert (ours[0] != mixed[0]).any()


def test_what_a_cache_held_before_is_never_read():
    model, _, decode = decoder_of('default')
    tokens = random_tokens()[:, :CHUNK]
    positions = np.broadcast_to(np.arange(CHUNK, dtype=np.int32), tokens.shape)
    empty = empty_cache(model, 3, CONTEXT)
    used = jax.tree.map(lambda x: x + 100.0, empty)
    np.testing.assert_array_equal(
        decode(tokens, positions, empty)[0], decode(tokens, positions, used)[0]
    )


def test_pages_beyond_what_was_read_cost_nothing():
    model, _, decode = decoder_of('default')
    tokens = random_tokens()[:, :CHUNK]
    positions = np.broadcast_to(np.arange(CHUNK, dtype=np.int32), tokens.shape)
    positions = np.where([[True], [True], [False]], positions, CONTEXT)  # one is idle
    empty = empty_cache(model, 3, CONTEXT)
    # Nobody could read this and not show it.
    broken = tuple(
        layer._replace(pages=(first, *jax.tree.map(lambda x: x + np.nan, rest)))
        for layer in empty
        for first, *rest in [layer.pages]
    )
    logits = decode(tokens, positions, broken)[0]
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(logits, decode(tokens, positions, empty)[0])


def test_a_block_is_written_elsewhere_as_it_was_read():
    rng = np.random.default_rng(0)

    def random_layer():
        layer = empty_cache(helpers.model_settings(), 3, CONTEXT)[0]
        noise = lambda x: jax.device_put(rng.standard_normal(x.shape).astype(x.dtype))
        return jax.tree.map(noise, layer)

    def whole(layer):
        """Its keys and values with all places in a row, (2, B, K, S, H)."""
        return np.stack([np.concatenate(x, 2) for x in zip(*layer.pages, strict=True)])

    ours, theirs = random_layer(), random_layer()
    block = theirs.read_block(2, 17, 6)  # places 17 to 22, of pages of twenty
    changed = whole(ours.write_block(1, 17, block))
    expected = whole(ours)
    expected[:, 1, :, 17:23] = whole(theirs)[:, 2, :, 17:23]
    np.testing.assert_array_equal(changed, expected)


def test_the_cache_has_the_heads_and_dtype_of_the_keys():
    model = helpers.model_settings(num_kv_heads=2, dtype='bfloat16')
    layers = empty_cache(model, batch=3, length=32)
    assert len(layers) == model.num_layers
    assert [page.size for page in layers[0].pages] == [20, 12]
    for page in layers[0].pages:
        assert (
            page.keys.shape == page.values.shape == (3, 2, page.size, 8)
        )  # B, K, S, H
        assert page.keys.dtype == page.values.dtype == 'bfloat16'
    leaves = jax.tree.leaves(layers)
    assert len({id(leaf) for leaf in leaves}) == len(leaves)  # each can be donated


def test_a_cache_of_bytes_is_nearly_the_full_forward():
    tokens = random_tokens()
    exact, rounded = (
        decode_in_chunks('default', tokens, new_cache)
        for new_cache in (empty_cache, empty_int8_cache)
    )
    error = np.abs(rounded - exact).max() / exact.std()
    assert 0 < error < 0.1
    sizes = [
        sum(
            leaf.nbytes
            for leaf in jax.tree.leaves(new_cache(decoder_of('default')[0], 3, 8))
        )
        for new_cache in (empty_cache, empty_int8_cache)
    ]
    assert sizes[1] == sizes[0] * (8 + 4) / 32  # 8 numbers a head and one scale


@pytest.mark.parametrize('scale', [1e-30, 1.0, 1e30])
def test_bytes_keep_each_number_to_half_a_step(scale):
    model = helpers.model_settings()
    rng = np.random.default_rng(0)
    shape = (2, 4, model.num_kv_heads, model.head_dim)
    keys, values = (scale * rng.standard_normal((2, *shape))).astype(np.float32)
    keys[0, 0] = 0
    positions = np.broadcast_to(np.arange(4), (2, 4))
    (cache,) = empty_int8_cache(model, 2, 4)[0].write(positions, keys, values).pages
    for read, written in zip(cache.read('float32'), (keys, values), strict=True):
        read = np.swapaxes(read, 1, 2)
        step = np.abs(written).max(axis=-1, keepdims=True) / 127
        assert (np.abs(read - written) <= 0.5001 * step).all()
