"""Packs documents into rows of T + 1 tokens, so that every token is predicted once.

The documents of a source form one stream, `BOS doc BOS doc … BOS doc BOS`, in which
BOS separates documents. The stream is cut into rows of T + 1 tokens that overlap by
one token, and only the last row is padded. With T = 4 the documents `a b` and `c d e`
are the stream `BOS a b BOS c d e BOS`. These are the rows, and the arrays that
`unpack` makes of them:

    stored     BOS a b BOS c | c d e BOS PAD
    inputs     BOS a b BOS   | c d e   BOS
    targets    a   b EOS c   | d e EOS PAD
    weights    1   1 1   1   | 1 1 1   0
    segments   1   1 1   2   | 1 1 1   2
    positions  0   1 2   0   | 0 1 2   0

As a target, the BOS after a document is replaced by EOS, the document's end. So every
token and every end is a target exactly once. A row that begins within a document (the
second one) does not see the earlier tokens of the document.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from gptjax.core import console, storage
from gptjax.tokenizer.load_tokenizer import AnyTokenizer
from gptjax.tokenizer.tokenizer import BOS, EOS, PAD

SHARD_TOKENS = 2**25  # 64 MiB of uint16


def read_split(path: Path) -> Iterator[dict]:
    """Yields the records of train.jsonl or validation.jsonl, with a progress bar."""
    size = path.stat().st_size / 1e6
    with console.progress_bar(f'tokenising {path.stem}', size, 'MB') as advance:
        yield from storage.read_jsonl(path, lambda num_bytes: advance(num_bytes / 1e6))


def name_specials(tokenizer: AnyTokenizer) -> dict[str, int]:
    """The special tokens by name, with the three that `unpack` needs."""
    ids = {PAD: tokenizer.pad_id, BOS: tokenizer.bos_id, EOS: tokenizer.eos_id}
    return {**tokenizer.specials, **ids}


class Packer:
    """Cuts a stream of documents into rows: call `add` any number of times, `finish`.

    Rows have context + 1 tokens of `dtype` (np.uint16 or np.uint32). `length` is the
    length of the stream so far, which is the position of the next document's BOS.
    """

    def __init__(self, context: int, pad: int, bos: int, dtype):
        self.length = 0
        self._context = context
        self._pad = pad
        self._bos = np.array([bos], dtype)
        self._rest = np.empty(0, dtype)  # begins with the last token of the last row

    def add(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        """The rows (n, T + 1) that these documents complete."""
        parts = [self._rest]
        for tokens in documents:
            parts += [self._bos, tokens.astype(self._rest.dtype)]
            self.length += 1 + len(tokens)
        return self._cut(np.concatenate(parts))

    def finish(self) -> np.ndarray:
        """The last row (1, T + 1), padded; (0, T + 1) if no token is left."""
        if not self.length:
            return self._cut(self._rest)
        self.length += 1
        rows = self._cut(np.concatenate([self._rest, self._bos]))
        if len(rows):
            return rows
        padding = self._context + 1 - len(self._rest)
        return np.pad(self._rest, (0, padding), constant_values=self._pad)[None]

    def _cut(self, stream: np.ndarray) -> np.ndarray:
        count = max(0, len(stream) - 1) // self._context
        self._rest = stream[count * self._context :].copy()
        begin = np.arange(count)[:, None] * self._context
        return stream[begin + np.arange(self._context + 1)]


class ShardWriter:
    """Writes the rows of one split and source; at most one shard is in memory.

        tokens-00000.npy …   rows (n, T + 1); other arrays have other names
        starts.npy           int64: where in the stream of rows each document begins
        documents.jsonl      the documents' ids, one JSON string per line

    `dtype` is the smallest one that holds the vocabulary's ids.
    """

    def __init__(self, folder: Path, tokenizer: AnyTokenizer, context: int):
        folder.mkdir(parents=True)
        self.folder = folder
        self.dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
        self.rows_per_shard = max(1, SHARD_TOKENS // (context + 1))
        self.num_rows = 0
        self._pending = {}  # name: arrays of rows that are not yet written
        self._num_written = 0
        self._starts = [np.zeros(0, np.int64)]
        self._ids = open(folder / 'documents.jsonl', 'w', encoding='utf-8')

    def add_documents(self, ids: Iterable[str], starts: Sequence[int]) -> None:
        self._ids.writelines(json.dumps(name) + '\n' for name in ids)
        self._starts.append(np.asarray(starts, np.int64))

    def add_rows(self, **arrays: np.ndarray) -> None:
        """Adds rows (n, T + 1) of `tokens`, and of arrays of the same shape."""
        if not len(arrays['tokens']):
            return
        self.num_rows += len(arrays['tokens'])
        for name, rows in arrays.items():
            self._pending.setdefault(name, []).append(rows)
        while self.num_rows - self._num_written >= self.rows_per_shard:
            self._write_shard()

    def finish(self) -> dict:
        """Writes the remaining rows; returns the manifest's entry."""
        if self.num_rows > self._num_written:
            self._write_shard()
        self._ids.close()
        np.save(self.folder / 'starts.npy', np.concatenate(self._starts))
        return dict(
            rows=self.num_rows,
            rows_per_shard=self.rows_per_shard,
            dtype=np.dtype(self.dtype).name,
            files={
                path.name: dict(
                    bytes=path.stat().st_size, sha256=storage.sha256_of_file(path)
                )
                for path in sorted(self.folder.iterdir())
            },
        )

    def _write_shard(self):
        number = self._num_written // self.rows_per_shard
        for name, pending in self._pending.items():
            rows = np.concatenate(pending)
            np.save(
                self.folder / f'{name}-{number:05d}.npy', rows[: self.rows_per_shard]
            )
            self._pending[name] = [rows[self.rows_per_shard :]]
        self._num_written = min(self._num_written + self.rows_per_shard, self.num_rows)


def unpack(
    rows: np.ndarray, pad: int, bos: int, eos: int, begins: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Makes the model's arrays from stored rows (B, T + 1); see the table above.

    Args:
        begins: bool, where segments begin; None: at every BOS.

    Returns:
        inputs, targets, segments, positions: (B, T) int32. Segments count from 1 and
            are 0 on padding; positions count from 0 in each segment.
        weights: (B, T) float32, 1 where the target is predicted, else 0.
    """
    inputs_BT, next_BT = rows[:, :-1].astype(np.int32), rows[:, 1:].astype(np.int32)
    weights_BT = (inputs_BT != pad) & (next_BT != pad)
    begins = rows == bos if begins is None else begins
    starts_BT = begins[:, :-1].copy()
    starts_BT[:, 0] = True
    place_T = np.arange(inputs_BT.shape[1], dtype=np.int32)
    start_BT = np.maximum.accumulate(np.where(starts_BT, place_T, 0), axis=1)
    segments_BT = np.cumsum(starts_BT, axis=1, dtype=np.int32)
    return {
        'inputs': inputs_BT,
        'targets': np.where(begins[:, 1:], np.int32(eos), next_BT),
        'segments': np.where(inputs_BT == pad, np.int32(0), segments_BT),
        'positions': place_T - start_BT,
        'weights': weights_BT.astype(np.float32),
    }
