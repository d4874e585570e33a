"""Self-attention: projections, rotary positions, query-key norm, cache."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.kernels.dot_product_attention import (
    causal_attention,
    causal_mask,
    masked_attention,
)
from gptjax.models.layers import (
    add_bias,
    bias_param,
    dropout,
    make_norm,
    normal_param,
    output_std,
)
from gptjax.models.linear import linear
from gptjax.parallel.sharding import constrain


def rotary_angles(positions_BT, size, base):
    """Position times base^(-2 i / R) for each pair i: float32 (B, T, R/2).

    R = `size` is the number of rotated elements of a head.
    """
    exponents = jnp.arange(0, size, 2, dtype=jnp.float32) / size
    return positions_BT[..., None].astype(jnp.float32) * base**-exponents


def rotate(x_BTNH, angles_BTh, scale=1.0):
    """Rotates the pairs (x[i], x[i + h]) of the first 2 h elements by their angles.

    The other elements of a head do not change (GPT-NeoX). The paper is Su et al. 2021;
    Hugging Face's models have the same pairs.

    Args:
        scale: of the rotated elements (YaRN).
    """
    cos = (scale * jnp.cos(angles_BTh))[:, :, None].astype(x_BTNH.dtype)  # (B, T, 1, h)
    sin = (scale * jnp.sin(angles_BTh))[:, :, None].astype(x_BTNH.dtype)
    h = angles_BTh.shape[-1]
    first, second, rest = jnp.split(x_BTNH, [h, 2 * h], axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin, rest], axis=-1
    )


class Attention(nnx.Module):
    """Multi-head, grouped (K < N) or multi-query (K = 1) attention."""

    def __init__(self, config, *, rngs):
        D, N, K = config.width, config.num_heads, config.num_kv_heads
        H = config.head_dim
        std = config.init_std
        kv_axes = ('embed', 'kv_heads', None)
        self.config = config
        self.query = normal_param(rngs, (D, N, H), ('embed', 'heads', None), std)
        self.key = normal_param(rngs, (D, K, H), kv_axes, std)
        self.value = normal_param(rngs, (D, K, H), kv_axes, std)
        self.out = normal_param(
            rngs, (N, H, D), ('heads', None, 'embed'), output_std(config)
        )
        has_bias = config.bias or config.qkv_bias
        self.query_bias = bias_param(has_bias, (N, H), ('heads', None))
        self.key_bias = bias_param(has_bias, (K, H), ('kv_heads', None))
        self.value_bias = bias_param(has_bias, (K, H), ('kv_heads', None))
        self.out_bias = bias_param(config.bias, (D,), (None,))
        if config.qk_norm:
            over_all = config.qk_norm_axis == 'all'
            self.query_norm = make_norm(config, N * H if over_all else H)
            self.key_norm = make_norm(config, K * H if over_all else H)

    def __call__(self, x, context, window, key=None, cache=None):
        """Attends within the documents of a batch, or to a cache.

        Args:
            x: (B, T, D), or flat (B T, D).
            window: number of keys that a query sees, 0: all. With a cache it must be
                a Python int.
            key: of dropout; None: no dropout.
            cache: the `LayerCache` of this layer, or None.

        Returns:
            (output in the shape of `x`, the cache with these tokens).
        """
        config = self.config
        query, keys, values = self._project(x, context, window)
        drop = None
        if key is not None and config.attention_dropout:

            def drop(start):
                block_key = jax.random.fold_in(key, start)
                return lambda p: dropout(p, config.attention_dropout, block_key)

        softcap = config.attention_softcap
        if cache is None:
            # Queries may be split over time, but each needs all earlier keys.
            keys = constrain(keys, 'batch', None, 'kv_heads', None)
            values = constrain(values, 'batch', None, 'kv_heads', None)
            mixed = causal_attention(
                query, keys, values, context.segments_BT, window, softcap, drop
            )
        else:
            cache = cache.write(context.positions_BT, keys, values)
            key_positions = jnp.arange(cache.size)
            # Padding and idle rows have positions past the end and see no key.
            valid = context.positions_BT[..., None] < len(key_positions)
            mask = (
                causal_mask(context.positions_BT, key_positions[None], window) & valid
            )
            mixed = masked_attention(query, cache.pages, mask, softcap, window)
        mixed = constrain(mixed, 'batch', 'time', 'heads', None)
        mixed = mixed.reshape(*x.shape[:-1], -1)  # (B, T, N H) or (B T, N H)
        return add_bias(linear(mixed, self.out), self.out_bias), cache

    def _project(self, x, context, window):
        """Queries (B, T, N, H), keys and values (B, T, K, H) for attention."""
        config = self.config
        query, keys, values = linear(x, self.query, self.key, self.value, outputs=2)
        query = add_bias(query, self.query_bias)
        keys = add_bias(keys, self.key_bias)
        values = add_bias(values, self.value_bias)
        if config.qk_norm:
            query = self._normalise(query, self.query_norm)
            keys = self._normalise(keys, self.key_norm)
        if config.query_scale:  # attention multiplies the scores by 1 / sqrt(H)
            query = query * jnp.asarray(
                config.query_scale * math.sqrt(config.head_dim), query.dtype
            )
        B, T = context.positions_BT.shape
        query, keys, values = (
            x.reshape(B, T, *x.shape[-2:]) for x in (query, keys, values)
        )
        query = constrain(query, 'batch', 'time', 'heads', None)
        keys = constrain(keys, 'batch', 'time', 'kv_heads', None)
        values = constrain(values, 'batch', 'time', 'kv_heads', None)
        if config.position == 'rotary':
            angles_BTh = context.angles_BTh
            if config.rotary_local_base:
                angles_BTh = jnp.where(window == 0, *angles_BTh)
            query = rotate(query, angles_BTh, config.rotary_scale)
            keys = rotate(keys, angles_BTh, config.rotary_scale)
        return query, keys, values

    def _normalise(self, x, norm):
        """The norm of each head (..., H), or of all heads together."""
        if self.config.qk_norm_axis == 'head':
            return norm(x)
        return norm(x.reshape(*x.shape[:-2], -1)).reshape(x.shape)
