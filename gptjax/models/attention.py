"""Self-attention: projections, rotary positions, query-key norm, cache."""

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


def rotary_angles(positions_BT, head_dim, base):
    """Position times base^(-2 i / H) for each pair i: float32 (B, T, h), h = H / 2."""
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    return positions_BT[..., None].astype(jnp.float32) * base**-exponents


def rotate(x_BTNH, angles_BTh):
    """Rotates the pairs (x[i], x[i + H/2]) by their angles (Su et al. 2021).

    Hugging Face's Llama has the same pairs.
    """
    cos = jnp.cos(angles_BTh)[:, :, None].astype(x_BTNH.dtype)  # (B, T, 1, h)
    sin = jnp.sin(angles_BTh)[:, :, None].astype(x_BTNH.dtype)
    first, second = jnp.split(x_BTNH, 2, axis=-1)  # (B, T, N, h) each
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
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
        self.query_bias = bias_param(config, (N, H), ('heads', None))
        self.key_bias = bias_param(config, (K, H), ('kv_heads', None))
        self.value_bias = bias_param(config, (K, H), ('kv_heads', None))
        self.out_bias = bias_param(config, (D,), (None,))
        if config.qk_norm:
            self.query_norm = make_norm(config, H)
            self.key_norm = make_norm(config, H)

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
        query, keys, values = self._project(x, context)
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

    def _project(self, x, context):
        """Queries (B, T, N, H), keys and values (B, T, K, H) for attention."""
        config = self.config
        query, keys, values = linear(x, self.query, self.key, self.value, outputs=2)
        query = add_bias(query, self.query_bias)
        keys = add_bias(keys, self.key_bias)
        values = add_bias(values, self.value_bias)
        if config.qk_norm:
            query, keys = self.query_norm(query), self.key_norm(keys)
        B, T = context.positions_BT.shape
        query, keys, values = (
            x.reshape(B, T, *x.shape[-2:]) for x in (query, keys, values)
        )
        query = constrain(query, 'batch', 'time', 'heads', None)
        keys = constrain(keys, 'batch', 'time', 'kv_heads', None)
        values = constrain(values, 'batch', 'time', 'kv_heads', None)
        if config.position == 'rotary':
            query = rotate(query, context.angles_BTh)
            keys = rotate(keys, context.angles_BTh)
        return query, keys, values
