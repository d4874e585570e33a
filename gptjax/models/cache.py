"""The key-value cache of decoding."""

import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from gptjax.parallel.sharding import constrain


def empty_cache(settings: FrozenConfigDict, batch: int, length: int):
    """(keys, values), zeros (L, B, S, K, H) in the compute dtype.

    What a place holds is never read before it is written: a token sees only
    places up to its own position.
    """
    shape = (
        settings.num_layers,
        batch,
        length,
        settings.num_kv_heads,
        settings.head_dim,
    )
    # Two arrays: a buffer that stood for both could not be donated.
    return tuple(
        constrain(
            jnp.zeros(shape, settings.dtype), None, 'batch', None, 'kv_heads', None
        )
        for _ in range(2)
    )
