"""The key-value cache of decoding: one for each layer, whole numbers or not."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from gptjax.parallel.sharding import axis_size, constrain


class Cache(NamedTuple):
    """Keys and values of one layer, (B, K, S, H) in the compute dtype.

    Heads stand before places: then a head's keys lie in a row, as the products of
    attention read them, and nothing is transposed.
    """

    keys: jax.Array
    values: jax.Array

    def write(self, positions_BT, keys_BTKH, values_BTKH) -> 'Cache':
        """With the tokens' keys and values at their positions."""
        return Cache(
            _place(self.keys, positions_BT, keys_BTKH),
            _place(self.values, positions_BT, values_BTKH),
        )

    def read(self, dtype):
        """(keys, values), each (B, K, S, H) in `dtype`."""
        return self.keys.astype(dtype), self.values.astype(dtype)


class Int8Cache(NamedTuple):
    """The same in a byte a number, and a scale for each key and value.

    x is kept as round(x / s) with s = max |x| / 127 over its H numbers.
    """

    keys: jax.Array  # int8 (B, K, S, H)
    key_scales: jax.Array  # float32 (B, K, S)
    values: jax.Array
    value_scales: jax.Array

    def write(self, positions_BT, keys_BTKH, values_BTKH) -> 'Int8Cache':
        keys, key_scales = _quantize(keys_BTKH)
        values, value_scales = _quantize(values_BTKH)
        return Int8Cache(
            _place(self.keys, positions_BT, keys),
            _place(self.key_scales, positions_BT, key_scales),
            _place(self.values, positions_BT, values),
            _place(self.value_scales, positions_BT, value_scales),
        )

    def read(self, dtype):
        return (
            (self.keys * self.key_scales[..., None]).astype(dtype),
            (self.values * self.value_scales[..., None]).astype(dtype),
        )


def empty_cache(
    settings: FrozenConfigDict, batch: int, length: int
) -> tuple[Cache, ...]:
    """Zeros, for each layer.

    What a place holds is never read before it is written: a token sees only
    places up to its own position.
    """
    shape = (batch, settings.num_kv_heads, length, settings.head_dim)
    # An array for each: a buffer that stood for two could not be donated.
    new = lambda: _constrain(jnp.zeros(shape, settings.dtype))
    return tuple(Cache(new(), new()) for _ in range(settings.num_layers))


def empty_int8_cache(
    settings: FrozenConfigDict, batch: int, length: int
) -> tuple[Int8Cache, ...]:
    """`empty_cache` of bytes."""
    shape = (batch, settings.num_kv_heads, length, settings.head_dim)
    numbers = lambda: _constrain(jnp.zeros(shape, jnp.int8))
    scales = lambda: _constrain(jnp.zeros(shape[:3], jnp.float32))
    return tuple(
        Int8Cache(numbers(), scales(), numbers(), scales())
        for _ in range(settings.num_layers)
    )


def _quantize(x):
    scales = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=-1) / 127
    numbers = jnp.round(x / jnp.where(scales > 0, scales, 1)[..., None])
    return numbers.astype(jnp.int8), scales


def _place(old, positions_BT, new):
    """`old` (B, K, S, ...) with `new` (B, T, K, ...) at each row's positions.

    Positions past the end (of padding, and of rows that are idle) are dropped.
    """
    B, K, S = old.shape[:3]
    new = new.astype(old.dtype)
    rows_B1 = jnp.arange(B)[:, None]
    if axis_size('tensor') > 1:  # heads may lie on several devices
        new = old.at[rows_B1, :, positions_BT].set(new, mode='drop')
        return _constrain(new)
    # On one device the same over one long axis: a CPU then writes in place, where
    # it copies the whole cache otherwise.
    heads_K = jnp.arange(K)
    places_BTK = (rows_B1[..., None] * K + heads_K) * S + positions_BT[..., None]
    places_BTK = jnp.where(positions_BT[..., None] < S, places_BTK, B * K * S)
    flat = old.reshape(B * K * S, *old.shape[3:])
    flat = flat.at[places_BTK.reshape(-1)].set(
        new.reshape(-1, *new.shape[3:]), mode='drop'
    )
    return flat.reshape(old.shape)


def _constrain(array):
    return constrain(array, 'batch', 'kv_heads', *[None] * (array.ndim - 2))
