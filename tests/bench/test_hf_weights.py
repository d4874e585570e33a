"""Weights with Hugging Face's names give the same logits in a NumPy model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.bench import hf_weights
from gptjax.models import gpt
from tests import helpers

LLAMA = dict(mlp='swiglu', qk_norm=False, num_kv_heads=2)


def numpy_logits(sizes, arrays, tokens):
    """Float64 logits (T, V) of a Hugging Face model, from weights by name."""
    w = {name: weight.astype(np.float64) for name, weight in arrays.items()}
    T, H = len(tokens), sizes['head_dim']
    N, K = sizes['num_attention_heads'], sizes['num_key_value_heads']
    frequencies = sizes['rope_theta'] ** -(np.arange(0, H, 2) / H)
    angles = np.tile(np.outer(np.arange(T), frequencies), 2)[:, None]  # (T, 1, H)

    def norm(x, name):
        mean = (x * x).mean(-1, keepdims=True)
        return x / np.sqrt(mean + sizes['rms_norm_eps']) * w[name]

    def rotate(x):
        halves = np.concatenate([-x[..., H // 2 :], x[..., : H // 2]], -1)
        return x * np.cos(angles) + halves * np.sin(angles)

    x = w['model.embed_tokens.weight'][list(tokens)]
    for i in range(sizes['num_hidden_layers']):
        layer = f'model.layers.{i}.'
        linear = lambda x, name, layer=layer: x @ w[f'{layer}{name}.weight'].T
        y = norm(x, layer + 'input_layernorm.weight')
        q = linear(y, 'self_attn.q_proj').reshape(T, N, H)
        k = linear(y, 'self_attn.k_proj').reshape(T, K, H)
        if sizes['qk_norm']:
            q = norm(q, layer + 'self_attn.q_norm.weight')
            k = norm(k, layer + 'self_attn.k_norm.weight')
        q, k = rotate(q), rotate(k).repeat(N // K, 1)
        v = linear(y, 'self_attn.v_proj').reshape(T, K, H).repeat(N // K, 1)
        scores = np.einsum('tnh,snh->nts', q, k) / np.sqrt(H)
        scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum('nts,snh->tnh', scores / scores.sum(-1, keepdims=True), v)
        x = x + linear(mixed.reshape(T, N * H), 'self_attn.o_proj')
        y = norm(x, layer + 'post_attention_layernorm.weight')
        up = linear(y, 'mlp.up_proj')
        if sizes['hidden_act'] == 'relu2':
            up = np.maximum(up, 0) ** 2
        else:
            gate = linear(y, 'mlp.gate_proj')
            up = gate / (1 + np.exp(-gate)) * up
        x = x + linear(up, 'mlp.down_proj')
    return norm(x, 'model.norm.weight') @ w['lm_head.weight'].T


@pytest.mark.slow
@pytest.mark.parametrize('parts', (LLAMA, dict(num_kv_heads=2)), ids=('llama', 'ours'))
def test_exported_weights_give_the_same_logits(parts, tmp_path):
    settings = helpers.model_settings(**parts, rotary_base=500.0, head_dim=12)
    params = gpt.init_params(settings, jax.random.key(1))
    # The scales of norms are not one, so that swapped norms are detected.
    scale = lambda key, x: x * jax.random.uniform(key, x.shape, minval=0.5, maxval=2)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    params = tree.unflatten(map(scale, keys, leaves))
    hf_weights.write(tmp_path / 'w.npz', settings, params)
    sizes, arrays = hf_weights.read(tmp_path / 'w.npz')
    assert sizes == hf_weights.sizes(settings)
    assert all(weight.dtype == np.float32 for weight in arrays.values())

    tokens_T = np.arange(20) * 7 % helpers.VOCAB
    ones, positions = jnp.ones((1, 20), jnp.int32), jnp.arange(20)[None]
    ours = gpt.bind(settings, params)(jnp.asarray(tokens_T)[None], ones, positions)[0]
    theirs = numpy_logits(sizes, arrays, tokens_T)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.abs(theirs).max() > 0.1  # far above the tolerance
