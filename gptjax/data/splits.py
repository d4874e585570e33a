"""Splits records into training and validation by a hash; no split stays empty.

A hash of a record's key, such as its id, decides the split: see `assign_split`. In a
few records it may leave a split empty, which `fill_splits` mends. Documents,
conversations, preferences and problems of a file are all split here.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from gptjax.core import storage
from gptjax.core.hashing import hash_fraction
from gptjax.data.sources.records import SPLITS


def assign_split(identity: str, validation_fraction: float) -> str:
    """Returns 'train' or 'validation', which depends on the document's id alone.

    The SHA-256 of the id, as a number from 0 to 1, is compared with the fraction. So
    other documents, sources and limits change nothing, and a larger fraction only
    moves documents from training to validation. The id does not contain the source's
    name: a conversation that two sources have is in the same split of both.
    """
    return 'validation' if hash_fraction(identity) < validation_fraction else 'train'


def fill_splits(
    keys: Sequence[str], split_of: Callable[[str], str], splits: Sequence[str] = SPLITS
) -> dict[str, list[int]]:
    """The numbers of the records in each split; no split is empty.

    Records with equal keys are in one split, except if all keys are equal: then their
    numbers are added. If a split would be empty, the key with the smallest hash of the
    largest split is moved there. With fewer keys than splits, splits share them.

        keys a, b, c in 'train' → train a, c; validation b
        key a in 'train'        → train a; validation a

    Args:
        split_of: key -> the split by its hash.
        splits: the first one gets most, if it would be empty.
    """
    if len({*keys}) == 1 < len(keys):
        keys = [f'{key}#{number}' for number, key in enumerate(keys)]
    parts = {split: [] for split in splits}
    if not keys:
        return parts
    for key in dict.fromkeys(keys):
        parts[split_of(key)].append(key)
    size = lambda split: len(parts[split])
    first = splits[0]
    if not parts[first]:
        largest = max(splits, key=size)
        parts[first], parts[largest] = parts[largest], []
    for split in splits:
        if not parts[split]:
            largest = max(splits, key=size)
            if size(largest) > 1:
                parts[split] = [min(parts[largest], key=storage.fingerprint)]
                parts[largest].remove(*parts[split])
            else:
                parts[split] = parts[[s for s in splits if parts[s]][-1]]
    numbers = {split: [] for split in splits}
    for split, part in parts.items():
        part = {*part}
        numbers[split] = [n for n, key in enumerate(keys) if key in part]
    return numbers


def describe_shared(splits: Mapping[str, object], unit: str) -> str:
    """A warning if two splits have the same content, else ''."""
    for one, other in combinations(splits, 2):
        if splits[one] == splits[other]:
            return (
                f'warning: too few {unit} to hold any out: {one} and {other} are the '
                'same, so validation shows what was learnt by heart'
            )
    return ''


class Part(NamedTuple):
    """Records that stay together: a document, or all views of a conversation."""

    key: str  # decides the split
    records: Sequence[dict]
    size: dict  # what the manifest counts


class SplitWriter:
    """Writes `folder`/train.jsonl and validation.jsonl; call `write`, then `finish`.

    Args:
        cut: cuts a part that is the only one into several, or returns [].
    """

    def __init__(
        self,
        folder: Path,
        validation_fraction: float,
        cut: Callable[[Part], list[Part]],
    ):
        self._paths = {split: folder / f'{split}.jsonl' for split in SPLITS}
        self._fraction = validation_fraction
        self._cut = cut
        self._files = self._open()
        self._sizes = {}
        # (key, source, number of records, size) of each part while a split is empty
        self._parts = []
        self._used = set()

    def __enter__(self) -> 'SplitWriter':
        return self

    def __exit__(self, *_) -> None:
        for file in self._files.values():
            file.close()

    def write(self, source: str, part: Part) -> None:
        split = assign_split(part.key, self._fraction)
        self._write(split, source, part.records, part.size)
        if len(self._used) == 1:
            self._parts.append((part.key, source, len(part.records), part.size))
        else:
            self._parts.clear()

    def finish(self) -> dict[str, dict[str, Counter]]:
        """Fills an empty split; returns the sum of sizes by source and split."""
        self.__exit__()
        if len(self._used) == 1:
            self._fill(self._paths[self._used.pop()])
        return self._sizes

    def _fill(self, path: Path) -> None:
        """Distributes the records of `path` over both splits."""
        draft = path.replace(path.with_suffix('.draft'))
        with open(draft, encoding='utf-8') as lines:
            parts = (
                (source, Part(key, [json.loads(next(lines)) for _ in range(n)], size))
                for key, source, n, size in self._parts
            )
            if len(self._parts) == 1:
                ((source, part),) = parts
                parts = [(source, one) for one in self._cut(part) or [part]]
                keys = [one.key for _, one in parts]
            else:
                keys = [key for key, *_ in self._parts]
            numbers = fill_splits(keys, lambda key: assign_split(key, self._fraction))
            numbers = {split: {*chosen} for split, chosen in numbers.items()}
            self._sizes.clear()
            self._files = self._open()
            for number, (source, part) in enumerate(parts):
                for split, chosen in numbers.items():
                    if number in chosen:
                        self._write(split, source, part.records, part.size)
            self.__exit__()
        draft.unlink()

    def _write(self, split, source, records: Iterable[dict], size) -> None:
        for record in records:
            self._files[split].write(json.dumps(record, ensure_ascii=False) + '\n')
        empty = {name: Counter(dict.fromkeys(size, 0)) for name in SPLITS}
        self._sizes.setdefault(source, empty)[split].update(size)
        self._used.add(split)

    def _open(self):
        return {s: open(path, 'w', encoding='utf-8') for s, path in self._paths.items()}
