"""Reads the packed rows of one split, and chooses which rows each step trains on.

The rows are those of RUN/prepared, those of RUN/dialogue with a mask of the tokens to
train on, or a mixture of both.
"""

import copy
import hashlib
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np

from gptjax.core import artifact, storage
from gptjax.core.console import UserError
from gptjax.data import packing
from gptjax.data.sources.records import SPLITS

MAX_PERIOD = 2**31  # so that a product of two stays below 2^63
ROUNDS = 8  # even; 4 are enough for large sizes, small sizes need more


@dataclass(frozen=True)
class RowChoice:
    """The rows of n slots; all arrays are (n,)."""

    source: np.ndarray  # index into `PackedDataset.sources`; -1: the slot is empty
    epoch: np.ndarray  # earlier passes over the source
    row: np.ndarray  # number of the row in the source; 0 for an empty slot


class PackedDataset:
    """The rows of 'train' or 'validation'.

    Attributes:
        context: T.
        sources: `PackedSource`s, in the order of their names.
        num_rows: the rows of all sources.
        weights: rows of each source in one period of the mixture.
        specials: ids of special tokens by name.
        tokenizer: fingerprint of the tokenizer of these rows.
        manifest: manifest.json of the folder.
    """

    def __init__(
        self,
        folder: Path | str,
        split: str,
        stage: str = 'prepare',
        section: str = 'data',
    ):
        """Opens a split of RUN/prepared or RUN/dialogue, and checks the files' sizes.

        Errors name the stage that makes the folder, and the section of the config that
        has the `sources`.
        """
        self.folder = folder = Path(folder)
        if split not in SPLITS:
            raise ValueError(f'split {split!r} is none of {SPLITS}')
        self.manifest = artifact.require(folder, stage)
        self.split = split
        self.context = self.manifest['context']
        self.specials = self.manifest['specials']
        self.tokenizer = self.manifest['tokenizer']
        self.sources = [
            PackedSource(folder / split / name, entry, stage)
            for name, entry in self.manifest['splits'][split].items()
        ]
        self.num_rows = sum(source.num_rows for source in self.sources)
        if not self.num_rows:
            raise UserError(
                f'{folder / split} has no documents: give more text in '
                f'{section}.sources, or change data.validation_fraction'
            )
        weights = integer_weights(
            self.manifest['weights'],
            {source.name: source.num_rows for source in self.sources},
            f'{section}.sources',
        )
        self.weights = [weights[source.name] for source in self.sources]

    @property
    def fingerprint(self) -> str:
        """A hash of the rows and weights, which with seed and step decide a batch."""
        parts = zip(self.sources, self.weights, strict=True)
        return storage.fingerprint(
            [[source.name, weight, source.files] for source, weight in parts]
        )

    def choose_training_rows(self, seed: int, slots: np.ndarray) -> RowChoice:
        """The rows of training slots: a function of these arguments alone.

        Slot step * batch_size + b is row b of the batch of that step. The n-th row of
        a source with N rows is in epoch n // N. Each epoch has every row once, in
        another order.
        """
        source, count = assign_sources(slots, self.weights)
        epoch, row = np.empty_like(count), np.empty_like(count)
        for index, packed in enumerate(self.sources):
            here = source == index
            key = f'{seed} {self.split} {packed.name}'
            epoch[here], row[here] = shuffle_epochs(count[here], packed.num_rows, key)
        return RowChoice(source, epoch, row)

    def choose_pass_rows(self, slots: np.ndarray) -> RowChoice:
        """The rows of the slots of one pass over all rows, in a fixed order.

        The order is random, so the first batches represent all sources. Slots after
        the last row are empty.
        """
        kept = slots < self.num_rows
        sizes = np.array([source.num_rows for source in self.sources])
        ends = np.cumsum(sizes)
        place = permute(np.where(kept, slots, 0), self.num_rows, f'{self.split} pass')
        source = np.searchsorted(ends, place, side='right')
        row = np.where(kept, place - (ends - sizes)[source], 0)
        return RowChoice(np.where(kept, source, -1), np.zeros_like(row), row)

    def load(self, choice: RowChoice) -> dict[str, np.ndarray]:
        """Reads the chosen rows, as the arrays of `packing.unpack`, (n, T).

        An empty slot is all padding. Weights are 0 where a mask excludes the target.
        """
        return self.unpack(*self.read(choice))

    def read(self, choice: RowChoice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, mask of the trained ones, where segments begin), each (n, T + 1)."""
        pad = self.specials['<pad>']
        rows = np.full((len(choice.row), self.context + 1), pad, np.uint32)
        trained = np.ones(rows.shape, bool)
        begins = np.zeros(rows.shape, bool)
        for index, source in enumerate(self.sources):
            here = choice.source == index
            rows[here] = source.read(choice.row[here])
            if source.masked:
                trained[here] = source.read(choice.row[here], 'trained')
            if source.has_begins:
                begins[here] = source.read(choice.row[here], 'begins')
            else:
                begins[here] = rows[here] == self.specials['<bos>']
        return rows, trained, begins

    def unpack(self, rows, trained, begins) -> dict[str, np.ndarray]:
        """The arrays (n, T) of what `read` returns."""
        pad, bos, eos = (self.specials[name] for name in ('<pad>', '<bos>', '<eos>'))
        batch = packing.unpack(rows, pad, bos, eos, begins)
        return dict(batch, weights=batch['weights'] * trained[:, 1:])


def mix_datasets(
    first: PackedDataset, second: PackedDataset, share: float
) -> PackedDataset:
    """Mixes two datasets; `share` of the rows are from the second one.

    Both need the same context and tokenizer. The names of the second dataset's sources
    get the prefix 'pretraining/'.
    """
    share = Fraction(str(share))
    parts = [(first, 1 - share, ''), (second, share, 'pretraining/')]
    both = copy.copy(first)
    both.sources, shares = [], []
    for split, factor, prefix in parts:
        for source, weight in zip(split.sources, split.weights, strict=True):
            renamed = copy.copy(source)
            renamed.name = prefix + source.name
            both.sources.append(renamed)
            shares.append(factor * Fraction(weight, sum(split.weights)))
    both.num_rows = first.num_rows + second.num_rows
    both.weights = to_whole_numbers(shares)
    return both


class PackedSource:
    """The rows of one source in one split.

    Attributes:
        files: size and SHA-256 of each file.
        masked: whether there is a mask of the tokens to train on.
        has_begins: whether there is a mask of the tokens that begin a segment.
    """

    def __init__(self, folder: Path, entry: dict, stage: str):
        self.name = folder.name
        self.num_rows = entry['rows']
        self.files = entry['files']
        self.masked = 'trained-00000.npy' in self.files
        self.has_begins = 'begins-00000.npy' in self.files
        self._folder = folder
        self._rows_per_shard = entry['rows_per_shard']
        self._shards = {}
        for name, written in self.files.items():
            path = folder / name
            size = path.stat().st_size if path.exists() else None
            if size != written['bytes']:
                state = 'is missing' if size is None else f'has {size:,} bytes'
                raise UserError(
                    f'{path} {state} and should have {written["bytes"]:,}: delete '
                    f'{folder.parent.parent} and run the stage `{stage}`'
                )

    def read(self, rows: np.ndarray, array: str = 'tokens') -> np.ndarray:
        """Reads rows (n, T + 1) by number (n,).

        `array` is 'tokens', or the name of a mask: 'trained' or 'begins'.
        """
        shard_of, place = np.divmod(rows, self._rows_per_shard)
        first = self._shard(array, 0)
        read = np.empty((len(rows), first.shape[1]), first.dtype)
        for number in np.unique(shard_of):
            here = shard_of == number
            read[here] = self._shard(array, int(number))[place[here]]
        return read

    def documents(self, row: int, context: int) -> list[str]:
        """The ids of the documents that have a token in the inputs of a row."""
        starts, ids = self._documents
        first, last = np.searchsorted(
            starts, [row * context, (row + 1) * context - 1], side='right'
        )
        return ids[max(0, first - 1) : last]

    @cached_property
    def _documents(self) -> tuple[np.ndarray, list[str]]:
        """(starts, ids) of the documents, as `ShardWriter` wrote them."""
        ids = list(storage.read_jsonl(self._folder / 'documents.jsonl'))
        return np.load(self._folder / 'starts.npy'), ids

    def _shard(self, array: str, number: int) -> np.ndarray:
        name = f'{array}-{number:05d}.npy'
        if name not in self._shards:
            self._shards[name] = np.load(self._folder / name, mmap_mode='r')
        return self._shards[name]


# ---- Sources mixed by weight ---------------------------------------------------------
#
# The slots of all batches are numbered from 0: slot = step * batch_size + row. With
# integer weights w the pattern of sources repeats every sum(w) slots, and has each
# source exactly w times, evenly spread. So the mixture is exact, and the source of a
# slot is computed without the slots before it.


def integer_weights(
    weights: dict[str, float], sizes: dict[str, int], field: str = 'data.sources'
) -> dict[str, int]:
    """The number of rows of each source in one period of the mixture.

    A weight is the share of the rows that a source gets. Sources of weight 0 divide
    the remaining share by their sizes. If all weights are 0, an epoch is one pass over
    all rows; if none is 0, they are relative to their sum.

        weights a=0.5, b=0, c=0 and sizes 9, 30, 10 → a=4, b=3, c=1

    Args:
        weights: `data.sources.NAME.weight` by source.
        sizes: rows of each source, positive.
    """
    given = {name: Fraction(str(weights[name])) for name in sizes}
    by_size = sum(sizes[name] for name in sizes if not given[name])
    left = 1 - sum(given.values())
    if by_size and left <= 0:
        name = next(name for name in sizes if not given[name])
        raise UserError(
            f'{field}.{name}.weight=0 takes the share that is left, but the other '
            f'weights sum to {float(1 - left):g}: make their sum less than 1, or give '
            'it a weight'
        )
    shares = [given[name] or left * Fraction(sizes[name], by_size) for name in sizes]
    return dict(zip(sizes, to_whole_numbers(shares), strict=True))


def to_whole_numbers(shares: list[Fraction]) -> list[int]:
    """The smallest whole numbers, at least 1, in the ratio of the shares."""
    total = sum(shares)
    shares = [share / total for share in shares]
    period = math.lcm(*(share.denominator for share in shares))
    if period > MAX_PERIOD:  # rounded: off by less than one in 2^30
        period = MAX_PERIOD // 2
    return [max(1, round(share * period)) for share in shares]


def assign_sources(
    slots: np.ndarray, weights: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """(source of each slot, number of earlier slots of that source).

    With weights 1 and 2 the sources of slots 0 … 5 are 1, 1, 0, 1, 1, 0. All arrays
    are int64 (n,).
    """
    source = np.full(slots.shape, len(weights) - 1)
    count = np.zeros(slots.shape, np.int64)
    unassigned = np.arange(len(slots))
    rest = slots  # number of each slot, counted without slots of earlier sources
    for index, weight in enumerate(weights):
        total = sum(weights[index:])
        period, place = np.divmod(rest, total)
        # This source takes slot n of `total` if n * weight // total increases at n.
        before = place * weight // total
        takes = (place + 1) * weight // total > before
        earlier = period * weight + before
        source[unassigned[takes]] = index
        count[unassigned[takes]] = earlier[takes]
        unassigned, rest = unassigned[~takes], (rest - earlier)[~takes]
    return source, count


# ---- Permutations that need no memory ------------------------------------------------
#
# A Feistel network permutes the numbers of 2k bits: each round replaces one half by
# its exclusive or with a hash of the other half, and the same hash undoes that. A
# result at or above `size` is permuted again until it is below (cycle walking), which
# gives a permutation of 0 … size - 1. All arithmetic is 64-bit integers, so the order
# is the same on every machine and with every version of every library.


def shuffle_epochs(
    count: np.ndarray, size: int, key: str
) -> tuple[np.ndarray, np.ndarray]:
    """(epoch, index) of the draws numbered `count`, from indices 0 … size - 1.

    Each epoch of `size` draws has every index once, in another order.
    """
    epoch, place = np.divmod(count, size)
    index = np.empty_like(place)
    for number in np.unique(epoch).tolist():
        here = epoch == number
        index[here] = permute(place[here], size, f'{key} {number}')
    return epoch, index


def permute(index: np.ndarray, size: int, key: str) -> np.ndarray:
    """Applies the permutation of 0 … size - 1 that `key` names; int64.

    `size` is below 2^62. Different keys name unrelated permutations.
    """
    index = np.asarray(index)
    if index.size and not (0 <= index.min() and index.max() < size):
        raise ValueError(f'index outside 0 … {size - 1}')
    low_bits = max(1, (size - 1).bit_length() // 2)
    high_bits = max(1, (size - 1).bit_length() - low_bits)
    digest = hashlib.shake_256(key.encode()).digest(8 * ROUNDS)
    keys = np.frombuffer(digest, '<u8')

    place = index.astype(np.uint64).ravel()
    outside = np.ones(place.shape, bool)
    while outside.any():
        place[outside] = _feistel(place[outside], low_bits, high_bits, keys)
        outside = place >= size
    return place.astype(np.int64).reshape(index.shape)


def _feistel(value, low_bits, high_bits, keys):
    low = value & np.uint64((1 << low_bits) - 1)
    high = value >> np.uint64(low_bits)
    for even, odd in keys.reshape(-1, 2):
        high ^= _hash(low, even) >> np.uint64(64 - high_bits)
        low ^= _hash(high, odd) >> np.uint64(64 - low_bits)
    return high << np.uint64(low_bits) | low


def _hash(value, key):
    """The 64-bit finaliser of SplitMix (Steele et al. 2014, section 3)."""
    value = value + key
    value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return value ^ value >> np.uint64(31)
