"""Decoding with a cache equals the full forward pass."""

from functools import lru_cache

import jax
import numpy as np
import pytest

from gptjax.models import gpt
from gptjax.models.cache import LayerCache, empty_cache, empty_int8_cache
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
# Number of tokens of each row in a step: a full chunk, part of a chunk, one.
TOKENS_PER_STEP = np.array([4, 3, 1])


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    """Makes pages so small that chunks cross page boundaries."""
    monkeypatch.setattr('gptjax.models.cache.MIN_PAGE_SIZE', 20)


@lru_cache
def make_decoder(name):
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
    """Logits (B, T, V) of rows that decode TOKENS_PER_STEP tokens at a time."""
    model, _, decode = make_decoder(name)
    B, T = tokens_BT.shape
    cache = new_cache(model, B, T)
    logits = np.full((B, T, helpers.VOCAB), np.nan, np.float32)
    done = np.zeros(B, int)
    while done.min() < T:
        tokens = np.zeros((B, CHUNK), np.int32)
        positions = np.full((B, CHUNK), T, np.int32)
        takes = np.minimum(TOKENS_PER_STEP, T - done)
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
    model, params, _ = make_decoder(name)
    tokens = random_tokens()
    positions = np.broadcast_to(np.arange(CONTEXT, dtype=np.int32), tokens.shape)

    @jax.jit
    def full(params):
        return gpt.bind(model, params)(tokens, np.ones_like(tokens), positions)

    ours = decode_in_chunks(name, tokens)
    # Measured: 3e-7 to 5e-7, float32 rounding (6e-8) through two layers.
    helpers.assert_close_in_norm(ours, full(params), 2e-6)


def test_a_row_does_not_depend_on_its_neighbours():
    tokens, others = random_tokens(0), random_tokens(1)
    others[1] = tokens[1]
    first, second = (decode_in_chunks('default', t) for t in (tokens, others))
    np.testing.assert_array_equal(first[1], second[1])
    assert (first[0] != second[0]).any()


def test_unwritten_positions_and_later_pages_are_never_read():
    model, _, decode = make_decoder('default')
    tokens = random_tokens()[:, :CHUNK]
    positions = np.broadcast_to(np.arange(CHUNK, dtype=np.int32), tokens.shape)
    # The last row is idle.
    positions = np.where([[True], [True], [False]], positions, CONTEXT)
    empty = empty_cache(model, 3, CONTEXT)
    used = tuple(
        LayerCache(
            (
                jax.tree.map(lambda x: x + 100.0, first),
                *jax.tree.map(lambda x: x + np.nan, rest),
            )
        )
        for first, *rest in (layer.pages for layer in empty)
    )
    logits, expected = (decode(tokens, positions, cache)[0] for cache in (used, empty))
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(logits[:2], expected[:2])


def test_a_block_is_copied_to_another_row():
    rng = np.random.default_rng(0)

    def random_layer():
        layer = empty_cache(helpers.model_settings(), 3, CONTEXT)[0]
        noise = lambda x: jax.device_put(rng.standard_normal(x.shape).astype(x.dtype))
        return jax.tree.map(noise, layer)

    def join(layer):
        """Keys and values of all pages, (2, B, K, S, H)."""
        return np.stack([np.concatenate(x, 2) for x in zip(*layer.pages, strict=True)])

    target, source = random_layer(), random_layer()
    block = source.read_block(2, 17, 6)  # positions 17 to 22, in two pages
    changed = join(target.write_block(1, 17, block))
    expected = join(target)
    expected[:, 1, :, 17:23] = join(source)[:, 2, :, 17:23]
    np.testing.assert_array_equal(changed, expected)


def test_the_cache_has_the_heads_and_dtype_of_the_keys():
    model = helpers.model_settings(num_kv_heads=2, dtype='bfloat16')
    layers = empty_cache(model, batch=3, length=32)
    assert len(layers) == model.num_layers
    assert [page.size for page in layers[0].pages] == [20, 12]
    for page in layers[0].pages:
        shape_BKSH = 3, 2, page.size, 8
        assert page.keys.shape == page.values.shape == shape_BKSH
        assert page.keys.dtype == page.values.dtype == 'bfloat16'
    leaves = jax.tree.leaves(layers)
    assert len({id(leaf) for leaf in leaves}) == len(leaves)  # each can be donated


def test_an_int8_cache_is_close_to_a_float_cache_and_smaller():
    tokens = random_tokens()
    exact, rounded = (
        decode_in_chunks('default', tokens, new_cache)
        for new_cache in (empty_cache, empty_int8_cache)
    )
    assert 0 < np.abs(rounded - exact).max() / exact.std() < 0.1
    model = make_decoder('default')[0]
    exact_size, int8_size = (
        sum(leaf.nbytes for leaf in jax.tree.leaves(new_cache(model, 3, 8)))
        for new_cache in (empty_cache, empty_int8_cache)
    )
    assert int8_size == exact_size * (8 + 4) / 32  # 8 numbers per head and one scale


@pytest.mark.parametrize('scale', [1e-30, 1.0, 1e30])
def test_int8_pages_keep_each_number_to_half_a_step(scale):
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
