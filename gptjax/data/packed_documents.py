"""The stage that turns cleaned documents into packed rows of tokens on disk.

    RUN/prepared/manifest.json
    RUN/prepared/train/chitchat/tokens-00000.npy   rows (n, T + 1), see packing.py
    RUN/prepared/train/chitchat/starts.npy         where each document's BOS is
    RUN/prepared/train/chitchat/documents.jsonl    their ids; for all see `ShardWriter`

The text is read a few megabytes at a time and tokenised by as many threads as there
are workers; memory stays bounded by one shard for each source.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gptjax.core import artifact, console
from gptjax.core.console import UserError
from gptjax.data.packing import Packer, ShardWriter
from gptjax.data.sources.records import SPLITS, group_by_size
from gptjax.tokenizer.tokenizer import Tokenizer

BATCH_CHARACTERS = 2**22  # tokenised at once


def build_packed_documents(config: ConfigDict, workdir: Path) -> dict:
    """Tokenises and packs RUN/documents into RUN/prepared; returns its manifest.

    The manifest counts documents, bytes of text, tokens to predict (an end for each
    document included), padding and rows, by split and source, and holds the size
    and SHA-256 of every file.
    """
    documents = artifact.require(workdir / 'documents', 'data')
    tokenizer = Tokenizer.load(workdir / 'tokenizer' / 'tokenizer.model')
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
        num_threads = config.data.workers or os.cpu_count()
        splits = {}
        for split in SPLITS:
            text = workdir / 'documents' / f'{split}.jsonl'
            splits[split] = _pack_split(
                text, folder / split, tokenizer, config.data.context, num_threads
            )
        return dict(
            context=config.data.context,
            vocab_size=tokenizer.vocab_size,
            tokenizer=tokenizer.fingerprint,
            specials=tokenizer.specials,
            weights=weights,
            licences=documents['licences'],
            splits=splits,
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


def _pack_split(text_path, folder, tokenizer, context, num_threads) -> dict:
    """Writes one split; returns what the manifest says, by source."""
    writers = {}
    size = text_path.stat().st_size / 1e6
    with (
        open(text_path, 'rb') as file,
        console.progress_bar(f'tokenising {folder.name}', size, 'MB') as advance,
    ):
        for lines in group_by_size(file, len, BATCH_CHARACTERS):
            documents = [json.loads(line) for line in lines]
            encoded = tokenizer.encode_arrays(
                [document['text'] for document in documents], num_threads
            )
            by_source = defaultdict(list)
            for document, tokens in zip(documents, encoded, strict=True):
                if len(tokens):
                    by_source[document['source']].append((document, tokens))
            for source, pairs in by_source.items():
                if source not in writers:
                    writers[source] = _SourceWriter(folder / source, tokenizer, context)
                writers[source].add(*zip(*pairs, strict=True))
            advance(sum(map(len, lines)) / 1e6)
    return {source: writers[source].finish() for source in sorted(writers)}


class _SourceWriter:
    """Packs the documents of one split and source into rows on disk."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, context: int):
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
        """Writes what is left; returns what the manifest says of this source."""
        self.shards.add_rows(tokens=self.packer.finish())
        # every token of the stream but its first BOS
        predicted = self.packer.length - 1
        return dict(
            documents=self.num_documents,
            bytes=self.num_bytes,
            predicted_tokens=predicted,
            padding=self.shards.num_rows * self.context - predicted,
            **self.shards.finish(),
        )
