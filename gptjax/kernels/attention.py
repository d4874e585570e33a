"""Causal attention over packed examples."""

import jax
import jax.numpy as jnp

from gptjax.parallel.sharding import axis_size

# Large enough to vanish in the softmax, small enough that a row that may see
# nothing (padding) stays finite.
MASKED = -1e30


def visible(query_positions_BT, key_positions_BS, window) -> jax.Array:
    """Which keys a query may see: those before it, at most `window` back.

    With window 2, the four queries of one document see

        1 . . .
        1 1 . .
        . 1 1 .
        . . 1 1

    Args:
        query_positions_BT: int32.
        key_positions_BS: int32.
        window: keys seen, the query's own included; 0: all.

    Returns:
        A bool array (B, T, S).
    """
    distance = query_positions_BT[:, :, None] - key_positions_BS[:, None, :]
    near = (window == 0) | (distance < window)
    return (distance >= 0) & near


def masked_attention(query_BTNH, key_BKSH, value_BKSH, mask_BTS, softcap=0.0):
    """softmax(q k^T / sqrt(H)) v, for each group of N / K query heads.

    Scores and softmax are float32 whatever the inputs are.

    Args:
        query_BTNH: queries.
        key_BKSH: keys, as a cache holds them; K divides N.
        value_BKSH: values.
        mask_BTS: bool, which keys a query sees.
        softcap: c in c tanh(score / c), Gemma 2's; 0: none.

    Returns:
        (B, T, N, H) in the values' dtype.
    """
    B, T, N, H = query_BTNH.shape
    K = key_BKSH.shape[1]
    query = query_BTNH.reshape(B, T, K, N // K, H) * (H**-0.5)
    scores = jnp.einsum(
        'BTKGH,BKSH->BKGTS', query, key_BKSH, preferred_element_type=jnp.float32
    )
    probabilities = _softmax(scores, mask_BTS[:, None, None], softcap)
    mixed = jnp.einsum(
        'BKGTS,BKSH->BTKGH', probabilities.astype(value_BKSH.dtype), value_BKSH
    )
    return mixed.reshape(B, T, N, H)


def causal_attention(
    query_BTNH, key_BTKH, value_BTKH, segments_BT, window=0, softcap=0.0, dropout=None
):
    """`masked_attention` of packed examples to themselves.

    A token sees those before it in its own segment, at most `window` of them.

    Queries are taken in a few blocks, each compared only with the keys up to
    its end: with four blocks three eighths of the scores, all above the
    diagonal, are never computed.

    Args:
        query_BTNH: queries.
        key_BTKH: keys; K divides N.
        value_BTKH: values.
        segments_BT: int32, the document of each token.
        window: tokens seen, the query's own included; 0: all.
        softcap: c in c tanh(score / c), Gemma 2's; 0: none.
        dropout: from a block's first query to a function on its
            probabilities (B, N, block, keys), or None.

    Returns:
        (B, T, N, H) in the values' dtype.
    """
    B, T, N, H = query_BTNH.shape
    groups = N // key_BTKH.shape[2]
    if groups > 1:  # every query head gets its own copy: one plain product
        key_BTKH = jnp.repeat(key_BTKH, groups, axis=2)
        value_BTKH = jnp.repeat(value_BTKH, groups, axis=2)
    places = jnp.arange(T)[None]
    mixed = []
    size = T // _num_blocks(T)
    for start in range(0, T, size):
        end = start + size
        mask = visible(places[:, start:end], places[:, :end], window)
        mask = mask & (segments_BT[:, start:end, None] == segments_BT[:, None, :end])
        part = _attend(
            query_BTNH[:, start:end],
            key_BTKH[:, :end],
            value_BTKH[:, :end],
            mask,
            softcap,
            dropout and dropout(start),
        )
        mixed.append(part)
    return mixed[0] if len(mixed) == 1 else jnp.concatenate(mixed, axis=1)


def _attend(query_BTNH, key_BSNH, value_BSNH, mask_BTS, softcap, dropout):
    """`masked_attention` with as many key as query heads."""
    query_BTNH = query_BTNH * (query_BTNH.shape[-1] ** -0.5)
    scores = jnp.einsum(
        'BTNH,BSNH->BNTS', query_BTNH, key_BSNH, preferred_element_type=jnp.float32
    )
    probabilities = _softmax(scores, mask_BTS[:, None], softcap)
    if dropout is not None:
        probabilities = dropout(probabilities)
    return jnp.einsum(
        'BNTS,BSNH->BTNH', probabilities.astype(value_BSNH.dtype), value_BSNH
    )


def _softmax(scores, mask, softcap):
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    return jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)


def _num_blocks(T: int) -> int:
    """Four, where time is long enough and lies on one device."""
    return 4 if T % 4 == 0 and T >= 64 and axis_size('context') == 1 else 1
