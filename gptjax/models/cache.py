"""The key-value cache for decoding: pages of float or int8 numbers.

A page holds a range of positions of every row. Attention reads only the pages that a
query sees, so a step costs what the cache holds and not its full length. Pages are
separate arrays, because slicing one array would copy it.
"""

from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from gptjax.parallel.sharding import axis_size, constrain

MIN_PAGE_SIZE = 128  # positions; skipping fewer does not pay for a branch
MAX_PAGES = 8  # of a layer; each adds compiled code


class Page(NamedTuple):
    """Keys and values (B, K, S, H) in the compute dtype.

    The head axis comes before the positions, so that the keys of a head are contiguous
    and the matrix products of attention transpose nothing.
    """

    keys: jax.Array
    values: jax.Array

    @property
    def size(self) -> int:
        """S, the number of positions."""
        return self.keys.shape[2]

    def write(self, positions_BT, keys_BTKH, values_BTKH, first_row=0) -> 'Page':
        """The page with keys and values written at positions of this page.

        Positions outside the page are dropped. The tokens may have fewer rows than the
        page; they are written to the rows from `first_row` on.
        """
        return Page(
            _scatter(self.keys, positions_BT, keys_BTKH, first_row),
            _scatter(self.values, positions_BT, values_BTKH, first_row),
        )

    def read(self, dtype):
        """(keys, values), each (B, K, S, H) in `dtype`."""
        return self.keys.astype(dtype), self.values.astype(dtype)


class Int8Page(NamedTuple):
    """A page of int8 numbers with a scale s for each key and value vector x.

    x is stored as round(x / s), s = max |x| / 127 over the H numbers of x.
    """

    keys: jax.Array  # int8 (B, K, S, H)
    key_scales: jax.Array  # float32 (B, K, S)
    values: jax.Array
    value_scales: jax.Array

    @property
    def size(self) -> int:
        return self.keys.shape[2]

    def write(self, positions_BT, keys_BTKH, values_BTKH, first_row=0) -> 'Int8Page':
        new = Int8Page(*_quantize(keys_BTKH), *_quantize(values_BTKH))
        write_array = lambda old, new: _scatter(old, positions_BT, new, first_row)
        return jax.tree.map(write_array, self, new)

    def read(self, dtype):
        return (
            (self.keys * self.key_scales[..., None]).astype(dtype),
            (self.values * self.value_scales[..., None]).astype(dtype),
        )


class LayerCache(NamedTuple):
    """The cache of one layer: pages in the order of positions."""

    pages: tuple

    @property
    def size(self) -> int:
        """S, the number of positions of all pages."""
        return sum(page.size for page in self.pages)

    def write(self, positions_BT, keys_BTKH, values_BTKH) -> 'LayerCache':
        """The cache with the keys and values of tokens written at their positions.

        Positions past the end, of padding and idle rows, are dropped.
        """
        return self._map_pages(
            lambda page, start: page.write(positions_BT - start, keys_BTKH, values_BTKH)
        )

    def row(self, row) -> 'LayerCache':
        """A view of one row with the methods of a cache; `whole` undoes it."""
        return LayerCache(tuple(PageRow(page, row) for page in self.pages))

    def whole(self) -> 'LayerCache':
        """The cache of all rows, from a view of `row`."""
        return LayerCache(tuple(view.page for view in self.pages))

    def read_block(self, row, start, size: int):
        """A copy of `size` positions from `start` of a row: (1, size, K, ...)."""

        def read(*arrays):  # (B, K, S, ...) of each page
            block_TK, first = 0, 0
            for x in arrays:
                positions_T = start + jnp.arange(size) - first
                valid_T = (positions_T >= 0) & (positions_T < x.shape[2])
                page_TK = x[row, :, jnp.clip(positions_T, 0, x.shape[2] - 1)]
                valid_T = valid_T.reshape(-1, *[1] * (page_TK.ndim - 1))
                block_TK = jnp.where(valid_T, page_TK, block_TK)
                first += x.shape[2]
            return block_TK[None]

        return jax.tree.map(read, *self.pages)

    def write_block(self, row, start, block) -> 'LayerCache':
        """The cache with a block of `read_block` written to a row."""
        positions_1T = start + jnp.arange(jax.tree.leaves(block)[0].shape[1])[None]

        def write(page, first):
            write_array = lambda old, new: _scatter(old, positions_1T - first, new, row)
            return jax.tree.map(write_array, page, block)

        return self._map_pages(write)

    def _map_pages(self, change):
        """The cache with `change(page, its first position)` for each page."""
        starts = accumulate((page.size for page in self.pages[:-1]), initial=0)
        return LayerCache(tuple(map(change, self.pages, starts)))


class PageRow(NamedTuple):
    """A view of one row of a page; slicing the page would copy it."""

    page: Page | Int8Page
    row: jax.Array

    @property
    def size(self) -> int:
        return self.page.size

    def write(self, positions_1T, keys_1TKH, values_1TKH) -> 'PageRow':
        page = self.page.write(positions_1T, keys_1TKH, values_1TKH, self.row)
        return PageRow(page, self.row)

    def read(self, dtype):
        """(keys, values), each (1, K, S, H) in `dtype`."""
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, self.row, 1)
        keys, values = self.page.read(dtype)
        return cut(keys), cut(values)


def empty_cache(
    settings: FrozenConfigDict, batch: int, length: int
) -> tuple[LayerCache, ...]:
    """A cache of zeros for each layer.

    A token sees only positions up to its own, so no position is read before it is
    written.
    """

    def make_page(*shape):
        # Separate arrays: one buffer cannot be donated twice.
        new = lambda: _constrain(jnp.zeros(shape, settings.dtype))
        return Page(new(), new())

    return _make_layers(settings, batch, length, make_page)


def empty_int8_cache(
    settings: FrozenConfigDict, batch: int, length: int
) -> tuple[LayerCache, ...]:
    """`empty_cache` with int8 pages."""

    def make_page(*shape):
        numbers = lambda: _constrain(jnp.zeros(shape, jnp.int8))
        scales = lambda: _constrain(jnp.zeros(shape[:3], jnp.float32))
        return Int8Page(numbers(), scales(), numbers(), scales())

    return _make_layers(settings, batch, length, make_page)


def _make_layers(settings, batch, length, make_page):
    K, H = settings.num_kv_heads, settings.head_dim
    make_layer = lambda: tuple(make_page(batch, K, S, H) for S in page_sizes(length))
    return tuple(LayerCache(make_layer()) for _ in range(settings.num_layers))


def page_sizes(length: int) -> list[int]:
    """The sizes of the pages; one on a GPU, where a branch waits for the host."""
    if jax.default_backend() == 'gpu':
        return [length]
    size = max(MIN_PAGE_SIZE, -(-length // MAX_PAGES))
    return [min(size, length - start) for start in range(0, length, size)]


def _quantize(x):
    scales = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=-1) / 127
    numbers = jnp.round(x / jnp.where(scales > 0, scales, 1)[..., None])
    return numbers.astype(jnp.int8), scales


def _scatter(old, positions_BT, new, first_row):
    """Writes `new` (b, T, K, ...) to `old` (B, K, S, ...), to b rows from `first_row`.

    Positions outside 0 to S - 1 are dropped.
    """
    B, K, S = old.shape[:3]
    new = new.astype(old.dtype)
    rows_B1 = first_row + jnp.arange(len(new))[:, None]
    valid_BT = (positions_BT >= 0) & (positions_BT < S)
    if axis_size('tensor') > 1:  # heads may be on several devices
        kept_BT = jnp.where(valid_BT, positions_BT, S)
        new = old.at[rows_B1, :, kept_BT].set(new, mode='drop')
        return _constrain(new)
    # On one device, scatter along one flat axis: XLA for CPU then writes in place
    # instead of copying the whole cache.
    heads_K = jnp.arange(K)
    flat_BTK = (rows_B1[..., None] * K + heads_K) * S + positions_BT[..., None]
    flat_BTK = jnp.where(valid_BT[..., None], flat_BTK, B * K * S)
    flat = old.reshape(B * K * S, *old.shape[3:])
    flat = flat.at[flat_BTK.reshape(-1)].set(
        new.reshape(-1, *new.shape[3:]), mode='drop'
    )
    return flat.reshape(old.shape)


def _constrain(array):
    return constrain(array, 'batch', 'kv_heads', *[None] * (array.ndim - 2))
