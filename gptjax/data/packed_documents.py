"""The stage `prepare`: tokenises cleaned documents and packs them into rows on disk.

    RUN/prepared/manifest.json
    RUN/prepared/train/chitchat/tokens-00000.npy   rows (n, T + 1), see packing.py
    RUN/prepared/train/chitchat/starts.npy         the position of each document's BOS
    RUN/prepared/train/chitchat/documents.jsonl    the documents' ids

A few megabytes of text are tokenised at a time, by `data.workers` threads. At most one
shard of each source is in memory.
"""

import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gptjax.core import artifact
from gptjax.core.console import UserError
from gptjax.data.packing import Packer, ShardWriter, name_specials, read_split
from gptjax.data.sources.records import SPLITS, group_by_size
from gptjax.tokenizer.load_tokenizer import AnyTokenizer, load_tokenizer

BATCH_CHARACTERS = 2**22  # tokenised by one call


def build_packed_documents(config: ConfigDict, workdir: Path) -> dict:
    """Tokenises and packs RUN/documents into RUN/prepared; returns the manifest.

    By split and source, the manifest counts documents, bytes of text, tokens to
    predict (including an end for each document), padding and rows, and has the size
    and SHA-256 of every file.
    """
    documents = artifact.require(workdir / 'documents', 'data')
    tokenizer = load_tokenizer(workdir / 'tokenizer')
    if config.data.context < 1:
        raise UserError(f'data.context={config.data.context}: give at least 1')
    weights = {name: source.weight for name, source in config.data.sources.items()}
    inputs = {
        'data.context': config.data.context,
        'documents': documents['fingerprint'],
        'tokenizer': tokenizer.fingerprint,
        **{f'data.sources.{name}.weight': value for name, value in weights.items()},
    }

    def make(folder: Path) -> dict:
        began = time.monotonic()
        return dict(
            context=config.data.context,
            vocab_size=tokenizer.vocab_size,
            tokenizer=tokenizer.fingerprint,
            specials=name_specials(tokenizer),
            weights=weights,
            licences=documents['licences'],
            splits={
                split: _pack_split(
                    workdir / 'documents' / f'{split}.jsonl',
                    folder / split,
                    tokenizer,
                    config.data,
                )
                for split in SPLITS
            },
            seconds=round(time.monotonic() - began, 2),
        )

    return artifact.build(workdir / 'prepared', inputs, make)


def describe_packed_documents(manifest: dict) -> str:
    tokens = [
        f'{sum(source["predicted_tokens"] for source in sources.values()):,} {name}'
        for name, sources in manifest['splits'].items()
    ]
    return f'tokens: {", ".join(tokens)}'


PACKED_DOCUMENTS = artifact.Artifact(
    'prepared', build_packed_documents, describe_packed_documents
)


def _pack_split(
    path: Path, folder: Path, tokenizer: AnyTokenizer, data: ConfigDict
) -> dict:
    """Writes the rows of one split; returns the manifest's entries by source."""
    writers = {}
    for documents in group_by_size(
        read_split(path), lambda document: len(document['text']), BATCH_CHARACTERS
    ):
        encoded = tokenizer.encode_arrays(
            [document['text'] for document in documents],
            data.workers or os.cpu_count(),
        )
        by_source = defaultdict(list)
        for document, tokens in zip(documents, encoded, strict=True):
            if len(tokens):
                by_source[document['source']].append((document, tokens))
        for source, pairs in by_source.items():
            if source not in writers:
                writers[source] = _SourceWriter(
                    folder / source, tokenizer, data.context
                )
            writers[source].add(*zip(*pairs, strict=True))
    return {source: writers[source].finish() for source in sorted(writers)}


class _SourceWriter:
    """Packs the documents of one split and source into rows on disk."""

    def __init__(self, folder: Path, tokenizer: AnyTokenizer, context: int):
        self.shards = ShardWriter(folder, tokenizer, context)
        self.packer = Packer(
            context, tokenizer.pad_id, tokenizer.bos_id, self.shards.dtype
        )
        self.context = context
        self.num_documents = 0
        self.num_bytes = 0

    def add(self, documents: Sequence[dict], tokens: Sequence[np.ndarray]) -> None:
        lengths = np.array([1 + len(document) for document in tokens])
        starts = self.packer.length + np.cumsum(lengths) - lengths
        self.shards.add_documents([document['id'] for document in documents], starts)
        self.num_documents += len(documents)
        self.num_bytes += sum(
            len(document['text'].encode('utf-8', 'replace')) for document in documents
        )
        self.shards.add_rows(tokens=self.packer.add(tokens))

    def finish(self) -> dict:
        """Writes the remaining rows; returns the manifest's entry."""
        self.shards.add_rows(tokens=self.packer.finish())
        predicted = self.packer.length - 1  # all tokens of the stream except one BOS
        return dict(
            documents=self.num_documents,
            bytes=self.num_bytes,
            predicted_tokens=predicted,
            padding=self.shards.num_rows * self.context - predicted,
            **self.shards.finish(),
        )
