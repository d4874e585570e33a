"""Rows on disk, by split and source: what `packed.PackedSplit` reads.

tokens-00000.npy …   rows (n, T + 1); beside them arrays of other names
starts.npy           int64: where in the stream of rows each document begins
documents.jsonl      their ids, one JSON string a line
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gptjax.core import storage
from gptjax.tokenizer.tokenizer import Tokenizer

SHARD_TOKENS = 2**25  # 64 MiB of uint16


class ShardWriter:
    """Writes the folder of one split and source; memory is bounded by one shard.

    Args:
        folder: is made.
        tokenizer: its vocabulary decides `dtype`, that of the tokens.
        context: T.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, context: int):
        folder.mkdir(parents=True)
        self.folder = folder
        self.dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
        self.rows_per_shard = max(1, SHARD_TOKENS // (context + 1))
        self.num_rows = 0
        self._pending = {}  # name: arrays of rows of the shard that is being filled
        self._written = 0  # rows
        self._starts = [np.zeros(0, np.int64)]
        self._ids = open(folder / 'documents.jsonl', 'w', encoding='utf-8')

    def add_documents(self, ids: Iterable[str], starts: Sequence[int]) -> None:
        self._ids.writelines(json.dumps(name) + '\n' for name in ids)
        self._starts.append(np.asarray(starts, np.int64))

    def add_rows(self, **arrays: np.ndarray) -> None:
        """Rows (n, T + 1) of `tokens`, and of what stands beside them."""
        self.num_rows += len(arrays['tokens'])
        for name, rows in arrays.items():
            self._pending.setdefault(name, []).append(rows)
        while self.num_rows - self._written >= self.rows_per_shard:
            self._write_shard()

    def finish(self) -> dict:
        """Writes what is left; returns its part of the manifest."""
        if self.num_rows > self._written:
            self._write_shard()
        self._ids.close()
        np.save(self.folder / 'starts.npy', np.concatenate(self._starts))
        return dict(
            rows=self.num_rows,
            rows_per_shard=self.rows_per_shard,
            dtype=np.dtype(self.dtype).name,
            files={
                path.name: {
                    'bytes': path.stat().st_size,
                    'sha256': storage.sha256_of_file(path),
                }
                for path in sorted(self.folder.iterdir())
            },
        )

    def _write_shard(self):
        number = self._written // self.rows_per_shard
        for name, pending in self._pending.items():
            rows = np.concatenate(pending)
            np.save(
                self.folder / f'{name}-{number:05d}.npy', rows[: self.rows_per_shard]
            )
            self._pending[name] = [rows[self.rows_per_shard :]]
        self._written = min(self._written + self.rows_per_shard, self.num_rows)
