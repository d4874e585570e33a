"""One split of packed rows, read at random: which rows a step has, and the rows.

The rows are those of RUN/prepared, of RUN/dialogue, where a mask says which tokens
are trained on, or of both, mixed.
"""

import copy
import json
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np

from gptjax.core import artifact, storage
from gptjax.core.console import UserError
from gptjax.data import mixing, packing
from gptjax.data.shuffle import permute
from gptjax.data.sources.records import SPLITS


@dataclass(frozen=True)
class Choice:
    """Which rows fill n slots.

    Attributes:
        source: (n,) index into `PackedSplit.sources`; -1 for a slot left empty.
        epoch: (n,) how often the source had been gone through before.
        row: (n,) the source's row, in stream order; 0 for an empty slot.
    """

    source: np.ndarray
    epoch: np.ndarray
    row: np.ndarray


class PackedSplit:
    """The rows of 'train' or 'validation'.

    Attributes:
        context: T.
        sources: `PackedSource`s, in the order of their names.
        num_rows: over all sources.
        weights: examples of each source in one period of the mixture.
        specials: ids of special tokens by name.
        tokenizer: fingerprint of the tokenizer of these rows.
        manifest: manifest.json of the folder.
    """

    def __init__(
        self,
        folder: Path | str,
        split: str,
        made_by: str = 'prepare',
        section: str = 'data',
    ):
        """Opens a split and checks the sizes of its files.

        Args:
            folder: RUN/prepared or RUN/dialogue.
            split: 'train' or 'validation'.
            made_by: the stage that makes the folder, for errors.
            section: of the config, whose `sources` it is from, likewise.

        Raises:
            UserError: it is not there, damaged, or has no rows.
        """
        folder = Path(folder)
        if split not in SPLITS:
            raise ValueError(f'split {split!r} is none of {SPLITS}')
        self.manifest = artifact.require(folder, made_by)
        self.split = split
        self.context = self.manifest['context']
        self.specials = self.manifest['specials']
        self.tokenizer = self.manifest['tokenizer']
        self.sources = [
            PackedSource(folder / split / name, entry, made_by)
            for name, entry in self.manifest['splits'][split].items()
        ]
        self.num_rows = sum(source.num_rows for source in self.sources)
        if not self.num_rows:
            raise UserError(
                f'{folder / split} has no documents: give more text in '
                f'{section}.sources, or change data.validation_fraction'
            )
        weights = mixing.integer_weights(
            self.manifest['weights'],
            {source.name: source.num_rows for source in self.sources},
            f'{section}.sources',
        )
        self.weights = [weights[source.name] for source in self.sources]

    @property
    def fingerprint(self) -> str:
        """A hash of the rows and their mixture: with seed and step, of a batch."""
        parts = zip(self.sources, self.weights, strict=True)
        return storage.fingerprint(
            [[source.name, weight, source.files] for source, weight in parts]
        )

    def training_rows(self, seed: int, slots: np.ndarray) -> Choice:
        """The rows for slots of training: a function of these arguments alone.

        Slot step * batch_size + b is place b of the batch of that step. The n-th
        example of a source with N rows is in its epoch n // N, and each epoch has
        every row once, in an order of its own.
        """
        source, count = mixing.assign(slots, self.weights)
        sizes = np.array([packed.num_rows for packed in self.sources])
        epoch, place = np.divmod(count, sizes[source])
        row = np.empty_like(place)
        for index, number in np.unique(np.stack([source, epoch]), axis=1).T.tolist():
            here = (source == index) & (epoch == number)
            key = f'{seed} {self.split} {self.sources[index].name} {number}'
            row[here] = permute(place[here], int(sizes[index]), key)
        return Choice(source, epoch, row)

    def pass_rows(self, slots: np.ndarray) -> Choice:
        """The rows for slots of one pass over all rows, in a fixed order.

        The order is mixed, so that the first batches stand for the whole. Slots
        after the last row are left empty.
        """
        kept = slots < self.num_rows
        sizes = np.array([source.num_rows for source in self.sources])
        ends = np.cumsum(sizes)
        place = permute(np.where(kept, slots, 0), self.num_rows, f'{self.split} pass')
        source = np.searchsorted(ends, place, side='right')
        row = np.where(kept, place - (ends - sizes)[source], 0)
        return Choice(np.where(kept, source, -1), np.zeros_like(row), row)

    def load(self, choice: Choice) -> dict[str, np.ndarray]:
        """The examples of n chosen rows, in that order.

        Returns:
            The arrays of `packing.unpack`, (n, T); an empty slot is padding. The
            weights of what a mask leaves out are 0.
        """
        pad = self.specials['<pad>']
        rows = np.full((len(choice.row), self.context + 1), pad, np.uint32)
        trained = np.ones(rows.shape, bool)
        for index, source in enumerate(self.sources):
            here = choice.source == index
            rows[here] = source.read(choice.row[here])
            if source.masked:
                trained[here] = source.read(choice.row[here], 'trained')
        batch = packing.unpack(
            rows, pad, self.specials['<bos>'], self.specials['<eos>']
        )
        return dict(batch, weights=batch['weights'] * trained[:, 1:])


def mixed(first: PackedSplit, second: PackedSplit, share: float) -> PackedSplit:
    """The rows of two splits, of which `share` of each batch are the second's.

    Both have the same context and tokenizer. The names of the second's sources get
    'pretraining/' before them.
    """
    share = Fraction(str(share))
    parts = [(first, 1 - share, ''), (second, share, 'pretraining/')]
    both = copy.copy(first)
    both.sources, shares = [], []
    for split, part, prefix in parts:
        for source, weight in zip(split.sources, split.weights, strict=True):
            renamed = copy.copy(source)
            renamed.name = prefix + source.name
            both.sources.append(renamed)
            shares.append(part * Fraction(weight, sum(split.weights)))
    both.num_rows = first.num_rows + second.num_rows
    both.weights = mixing.in_whole_numbers(shares)
    return both


class PackedSource:
    """The rows of one source in one split.

    Attributes:
        name: as in the config's `sources`.
        num_rows: stored rows.
        files: size and SHA-256 of each file.
        masked: whether a mask says what is trained on; else everything is.
    """

    def __init__(self, folder: Path, entry: dict, made_by: str):
        self.name = folder.name
        self.num_rows = entry['rows']
        self.files = entry['files']
        self.masked = 'trained-00000.npy' in self.files
        self._folder = folder
        self._rows_per_shard = entry['rows_per_shard']
        self._shards = {}
        for name, written in self.files.items():
            path = folder / name
            size = path.stat().st_size if path.exists() else None
            if size != written['bytes']:
                found = 'is missing' if size is None else f'has {size:,} bytes'
                raise UserError(
                    f'{path} {found} and should have {written["bytes"]:,}: delete '
                    f'{folder.parent.parent} and run the stage `{made_by}`'
                )

    def read(self, rows: np.ndarray, what: str = 'tokens') -> np.ndarray:
        """Stored rows (n, T + 1) by number, any order; only these are read.

        Args:
            rows: (n,) their numbers.
            what: 'tokens', or 'trained' for the mask.
        """
        shard_of, place = np.divmod(rows, self._rows_per_shard)
        first = self._shard(what, 0)
        read = np.empty((len(rows), first.shape[1]), first.dtype)
        for number in np.unique(shard_of):
            here = shard_of == number
            read[here] = self._shard(what, int(number))[place[here]]
        return read

    def documents(self, row: int, context: int) -> list[str]:
        """The ids of the documents of which the inputs of a row have a token."""
        first, last = np.searchsorted(
            self._starts, [row * context, (row + 1) * context - 1], side='right'
        )
        return self._ids[max(0, first - 1) : last]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.load(self._folder / 'starts.npy')

    @cached_property
    def _ids(self) -> list[str]:
        with open(self._folder / 'documents.jsonl', encoding='utf-8') as file:
            return [json.loads(line) for line in file]

    def _shard(self, what: str, number: int) -> np.ndarray:
        name = f'{what}-{number:05d}.npy'
        if name not in self._shards:
            self._shards[name] = np.load(self._folder / name, mmap_mode='r')
        return self._shards[name]
