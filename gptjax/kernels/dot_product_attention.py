"""Causal attention: within packed examples, and to a cache of pages."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import jax
import jax.numpy as jnp

from gptjax.kernels.cross_entropy import strided_chunks
from gptjax.parallel.mesh import AXES
from gptjax.parallel.sharding import axis_size

# Zero after the softmax, but finite for a row that sees no key (padding).
MASKED = -1e30

# The most scores of one block that a device holds: 1 GiB of float32, and 3 GiB for the
# backward pass. Larger blocks are computed in chunks, and again in the backward pass.
MAX_SCORES = 2**28


def causal_mask(query_positions_BT, key_positions_BS, window) -> jax.Array:
    """bool (B, T, S): a query sees the last `window` keys up to its own position.

    With window 2, the four queries of one document see

        1 . . .
        1 1 . .
        . 1 1 .
        . . 1 1

    A window of 0 shows all keys up to the query's position.
    """
    distance = query_positions_BT[:, :, None] - key_positions_BS[:, None, :]
    near = (window == 0) | (distance < window)
    return (distance >= 0) & near


def attention_reference(query_BTNH, key_BSKH, value_BSKH, mask_BTS, softcap=0.0):
    """softmax(q k^T / sqrt(H)) v, with each key head for N / K query heads.

    The reference for the other functions of this file.
    """
    groups = query_BTNH.shape[2] // key_BSKH.shape[2]
    keys_BSNH, values_BSNH = (
        jnp.repeat(x, groups, axis=2) for x in (key_BSKH, value_BSKH)
    )
    scores_BNTS = jnp.einsum('BTNH,BSNH->BNTS', query_BTNH, keys_BSNH)
    scores_BNTS = scores_BNTS * query_BTNH.shape[-1] ** -0.5
    if softcap:
        scores_BNTS = softcap * jnp.tanh(scores_BNTS / softcap)
    scores_BNTS = jnp.where(mask_BTS[:, None], scores_BNTS, MASKED)
    return jnp.einsum('BNTS,BSNH->BTNH', jax.nn.softmax(scores_BNTS), values_BSNH)


def masked_attention(query_BTNH, pages: Sequence, mask_BTS, softcap=0.0, window=0):
    """softmax(q k^T / sqrt(H)) v over a cache, for each group of N / K query heads.

    Scores and softmax are float32. Pages that no query sees are not read: their
    probabilities are zeros, so the result is bitwise the same.

    Without a window, the pages that are seen are the first ones, and one branch selects
    their number. With a branch for each page, a step of one row took 1.4 times as long
    on a CPU, because idle cores fell asleep between branches.

    Args:
        pages: in the order of positions. A page has `size`, the number of positions,
            and `read(dtype)`, which returns keys and values (B, K, size, H); K divides
            N.
        mask_BTS: bool, which keys of all pages a query sees.
        softcap: c in c tanh(score / c) (Gemma 2); 0: none.
        window: the window of the mask, an int; 0: none.

    Returns:
        (B, T, N, H) in the dtype of the queries.
    """
    B, T, N, H = query_BTNH.shape
    dtype = query_BTNH.dtype
    K = jax.eval_shape(lambda: pages[0].read(dtype)[0]).shape[1]
    # F = T N / K, the queries of one key head. This order of axes makes one matrix
    # product for each row and head; otherwise XLA for CPU would transpose all values.
    query_BTKGH = query_BTNH.reshape(B, T, K, N // K, H) * (H**-0.5)
    query_BKFH = jnp.swapaxes(query_BTKGH, 1, 2).reshape(B, K, -1, H)
    mask_BFS = jnp.repeat(mask_BTS, N // K, axis=1)

    ends = list(accumulate(page.size for page in pages))[:-1]

    def score_page(page):
        keys_BKSH, _ = page.read(dtype)
        return jnp.einsum(
            'BKFH,BKSH->BKFS', query_BKFH, keys_BKSH, preferred_element_type=jnp.float32
        )

    def mix_page(page, probabilities_BKFS):
        _, values_BKSH = page.read(dtype)
        return jnp.einsum(
            'BKFS,BKSH->BKFH',
            probabilities_BKFS,
            values_BKSH,
            preferred_element_type=jnp.float32,
        )

    def score_pages(read, pages):
        scores = [
            _compute_if_read(r, score_page, p) for r, p in zip(read, pages, strict=True)
        ]
        return jnp.concatenate(scores, axis=-1)

    def mix_pages(read, pages, probabilities):
        parts = jnp.split(probabilities, ends, axis=-1)
        mixed = [
            _compute_if_read(r, mix_page, *each)
            for r, *each in zip(read, pages, parts, strict=True)
        ]
        return sum(mixed[1:], start=mixed[0])

    pages = tuple(pages)
    with_pages = _make_page_selector(jnp.split(mask_BTS, ends, axis=2), window)
    scores_BKFS = with_pages(score_pages, pages)
    probabilities = _softmax(scores_BKFS, mask_BFS[:, None], softcap).astype(dtype)
    mixed_BKFH = with_pages(mix_pages, pages, probabilities).astype(dtype)
    mixed_BKTGH = mixed_BKFH.reshape(B, K, T, N // K, H)
    return jnp.swapaxes(mixed_BKTGH, 1, 2).reshape(B, T, N, H)


def causal_attention(
    query_BTNH, key_BTKH, value_BTKH, segments_BT, window=0, softcap=0.0, dropout=None
):
    """Attention within the documents of packed examples.

    Queries are computed in four blocks, each only with the keys up to its end. This
    saves three eighths of the scores, which are all above the diagonal.

    Args:
        segments_BT: int32, the document of each token.
        window: number of tokens that a query sees, itself included; 0: all.
        softcap: c in c tanh(score / c) (Gemma 2); 0: none.
        dropout: maps the index of a block's first query to a function on the block's
            probabilities (B, N, block, keys); None: no dropout.

    Returns:
        (B, T, N, H) in the dtype of the values.
    """
    B, T, N, H = query_BTNH.shape
    groups = N // key_BTKH.shape[2]
    if groups > 1:  # copies for each query head give plain matrix products
        key_BTKH = jnp.repeat(key_BTKH, groups, axis=2)
        value_BTKH = jnp.repeat(value_BTKH, groups, axis=2)
    positions = jnp.arange(T)[None]
    mixed = []
    size = T // _num_blocks(T)
    num_chunks = _num_chunks(size, B * N * size * T)
    for start in range(0, T, size):
        end = start + size
        mask = causal_mask(positions[:, start:end], positions[:, :end], window)
        mask = mask & (segments_BT[:, start:end, None] == segments_BT[:, None, :end])
        arrays = (
            query_BTNH[:, start:end],
            key_BTKH[:, :end],
            value_BTKH[:, :end],
            mask,
        )
        if num_chunks == 1:
            part = _attend(*arrays, softcap, dropout and dropout(start))
        else:
            part = _attend_in_chunks(*arrays, softcap, dropout, start, num_chunks)
        mixed.append(part)
    return mixed[0] if len(mixed) == 1 else jnp.concatenate(mixed, axis=1)


def _attend(query_BTNH, key_BSNH, value_BSNH, mask_BTS, softcap, dropout):
    """Attention with the same number of key heads and query heads."""
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


def _attend_in_chunks(
    query_BTNH, key_BSNH, value_BSNH, mask_BTS, softcap, dropout, start, count
):
    """`_attend` of `count` chunks of the queries, one after the other.

    The backward pass computes the scores again and holds those of one chunk. A chunk
    has every n-th query, so that an axis that is split over devices stays split.
    """

    def attend(chunk):
        query, mask, number = chunk
        drop = dropout and dropout(number)
        return _attend(query, key_BSNH, value_BSNH, mask, softcap, drop)

    queries, masks = (strided_chunks(x, 1, count) for x in (query_BTNH, mask_BTS))
    numbers = start + jnp.arange(count)
    mixed = jax.lax.map(
        jax.checkpoint(attend, prevent_cse=False), (queries, masks, numbers)
    )
    return jnp.moveaxis(mixed, 0, 2).reshape(query_BTNH.shape)


def _softmax(scores, mask, softcap):
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    return jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)


def _make_page_selector(masks, window):
    """`with_pages(compute, *args)`, which returns `compute(read, *args)`.

    `read` says for each page whether a query sees it.
    """
    if len(masks) == 1:
        return lambda compute, *args: compute([True], *args)
    seen = [mask.any() for mask in masks]
    if window:
        return lambda compute, *args: compute(seen, *args)
    indices = range(len(masks))
    last = jnp.max(jnp.stack([jnp.where(s, i, 0) for i, s in enumerate(seen)]))
    first_pages = [[i <= m for i in indices] for m in indices]
    return lambda compute, *args: jax.lax.switch(
        last, [partial(compute, read) for read in first_pages], *args
    )


def _compute_if_read(read, compute, *args):
    """`compute(*args)` if `read`, else zeros of the same shape."""
    if read is True:
        return compute(*args)
    shape = jax.eval_shape(compute, *args)
    zeros = lambda *_: jnp.zeros(shape.shape, shape.dtype)
    return zeros() if read is False else jax.lax.cond(read, compute, zeros, *args)


def _num_blocks(T: int) -> int:
    """Four, if T is long enough and not split over devices."""
    return 4 if T % 4 == 0 and T >= 64 and axis_size('context') == 1 else 1


def _num_chunks(size: int, scores: int) -> int:
    """The smallest divisor of `size` that gives at most MAX_SCORES per chunk."""
    scores_per_device = scores / math.prod(map(axis_size, AXES))
    wanted = min(math.ceil(scores_per_device / MAX_SCORES), size)
    return next(n for n in range(wanted, size + 1) if size % n == 0)
