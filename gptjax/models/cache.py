"""The key-value cache of decoding, in pages: a layer's each, whole numbers or bytes.

A layer's cache is pages, each for so many places of every row. Attention reads those
that a row sees, so that a step costs what is in the cache and not what would fit. Pages
are arrays of their own, as to slice one would be to copy it.
"""

from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from gptjax.parallel.sharding import axis_size, constrain

LEAST_PAGE = 128  # places: less to read is not worth a choice
MOST_PAGES = 8  # of a layer: each is compiled


class Cache(NamedTuple):
    """A page of keys and values, (B, K, S, H) in the compute dtype.

    Heads stand before places: then a head's keys lie in a row, as the products of
    attention read them, and nothing is transposed.
    """

    keys: jax.Array
    values: jax.Array

    @property
    def size(self) -> int:
        """S, its places."""
        return self.keys.shape[2]

    def write(self, positions_BT, keys_BTKH, values_BTKH, first_row=0) -> 'Cache':
        """With the tokens' keys and values at their positions in the page.

        Those before its first place and past its last are dropped. The tokens may be
        of fewer rows than the page has: then of those from `first_row` on.
        """
        return Cache(
            _place(self.keys, positions_BT, keys_BTKH, first_row),
            _place(self.values, positions_BT, values_BTKH, first_row),
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

    @property
    def size(self) -> int:
        return self.keys.shape[2]

    def write(self, positions_BT, keys_BTKH, values_BTKH, first_row=0) -> 'Int8Cache':
        new = Int8Cache(*_quantize(keys_BTKH), *_quantize(values_BTKH))
        put = lambda old, new: _place(old, positions_BT, new, first_row)
        return jax.tree.map(put, self, new)

    def read(self, dtype):
        return (
            (self.keys * self.key_scales[..., None]).astype(dtype),
            (self.values * self.value_scales[..., None]).astype(dtype),
        )


class Pages(NamedTuple):
    """The cache of one layer: pages in the order of their places."""

    pages: tuple

    @property
    def size(self) -> int:
        """S, places of all pages."""
        return sum(page.size for page in self.pages)

    def write(self, positions_BT, keys_BTKH, values_BTKH) -> 'Pages':
        """With the tokens' keys and values at their positions.

        Positions past the end (of padding, and of rows that are idle) are dropped.
        """
        return self._each(
            lambda page, start: page.write(positions_BT - start, keys_BTKH, values_BTKH)
        )

    def row(self, row) -> 'Pages':
        """One row of them as a cache of its own; `whole` goes back."""
        return Pages(tuple(Row(page, row) for page in self.pages))

    def whole(self) -> 'Pages':
        return Pages(tuple(view.page for view in self.pages))

    def read_block(self, row, start, size: int):
        """A copy of `size` places of a row from `start`, (1, size, K, ...) each."""

        def read(*arrays):  # (B, K, S, ...) of each page
            block_TK, first = 0, 0
            for x in arrays:
                places_T = start + jnp.arange(size) - first
                inside_T = (places_T >= 0) & (places_T < x.shape[2])
                found_TK = x[row, :, jnp.clip(places_T, 0, x.shape[2] - 1)]
                inside_T = inside_T.reshape(-1, *[1] * (found_TK.ndim - 1))
                block_TK = jnp.where(inside_T, found_TK, block_TK)
                first += x.shape[2]
            return block_TK[None]

        return jax.tree.map(read, *self.pages)

    def write_block(self, row, start, block) -> 'Pages':
        """With such a copy in a row."""
        places_1T = start + jnp.arange(jax.tree.leaves(block)[0].shape[1])[None]

        def write(page, first):
            put = lambda old, new: _place(old, places_1T - first, new, row)
            return jax.tree.map(put, page, block)

        return self._each(write)

    def _each(self, change):
        """With `change(page, its first place)` of every page."""
        starts = accumulate((page.size for page in self.pages[:-1]), initial=0)
        return Pages(tuple(map(change, self.pages, starts)))


class Row(NamedTuple):
    """One row of a page, read and written in its place: to slice it would copy it."""

    page: Cache | Int8Cache
    row: jax.Array

    @property
    def size(self) -> int:
        return self.page.size

    def write(self, positions_1T, keys_1TKH, values_1TKH) -> 'Row':
        page = self.page.write(positions_1T, keys_1TKH, values_1TKH, self.row)
        return Row(page, self.row)

    def read(self, dtype):
        """(keys, values), each (1, K, S, H) in `dtype`."""
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, self.row, 1)
        keys, values = self.page.read(dtype)
        return cut(keys), cut(values)


def empty_cache(
    settings: FrozenConfigDict, batch: int, length: int
) -> tuple[Pages, ...]:
    """Zeros, for each layer.

    What a place holds is never read before it is written: a token sees only
    places up to its own position.
    """

    def page(size):
        shape = (batch, settings.num_kv_heads, size, settings.head_dim)
        # An array for each: a buffer that stood for two could not be donated.
        new = lambda: _constrain(jnp.zeros(shape, settings.dtype))
        return Cache(new(), new())

    return _all_pages(settings, length, page)


def empty_int8_cache(
    settings: FrozenConfigDict, batch: int, length: int
) -> tuple[Pages, ...]:
    """`empty_cache` of bytes."""

    def page(size):
        shape = (batch, settings.num_kv_heads, size, settings.head_dim)
        numbers = lambda: _constrain(jnp.zeros(shape, jnp.int8))
        scales = lambda: _constrain(jnp.zeros(shape[:3], jnp.float32))
        return Int8Cache(numbers(), scales(), numbers(), scales())

    return _all_pages(settings, length, page)


def _all_pages(settings, length, page):
    sizes = page_sizes(length)
    return tuple(
        Pages(tuple(page(size) for size in sizes)) for _ in range(settings.num_layers)
    )


def page_sizes(length: int) -> list[int]:
    """The places of each page; on a GPU, which would wait for the host at each, one."""
    if jax.default_backend() == 'gpu':
        return [length]
    size = max(LEAST_PAGE, -(-length // MOST_PAGES))
    return [min(size, length - start) for start in range(0, length, size)]


def _quantize(x):
    scales = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=-1) / 127
    numbers = jnp.round(x / jnp.where(scales > 0, scales, 1)[..., None])
    return numbers.astype(jnp.int8), scales


def _place(old, positions_BT, new, first_row):
    """`old` (B, K, S, ...) with `new` (b, T, K, ...) at b rows' positions.

    Positions that it does not have are dropped.
    """
    B, K, S = old.shape[:3]
    new = new.astype(old.dtype)
    rows_B1 = first_row + jnp.arange(len(new))[:, None]
    inside_BT = (positions_BT >= 0) & (positions_BT < S)
    if axis_size('tensor') > 1:  # heads may lie on several devices
        places_BT = jnp.where(inside_BT, positions_BT, S)
        new = old.at[rows_B1, :, places_BT].set(new, mode='drop')
        return _constrain(new)
    # On one device the same over one long axis: a CPU then writes in place, where
    # it copies the whole cache otherwise.
    heads_K = jnp.arange(K)
    places_BTK = (rows_B1[..., None] * K + heads_K) * S + positions_BT[..., None]
    places_BTK = jnp.where(inside_BT[..., None], places_BTK, B * K * S)
    flat = old.reshape(B * K * S, *old.shape[3:])
    flat = flat.at[places_BTK.reshape(-1)].set(
        new.reshape(-1, *new.shape[3:]), mode='drop'
    )
    return flat.reshape(old.shape)


def _constrain(array):
    return constrain(array, 'batch', 'kv_heads', *[None] * (array.ndim - 2))
