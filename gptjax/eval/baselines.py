"""Baselines that need no model: entropies and `xz -9e` of the evaluated documents.

All are in bits per byte of the documents' text. Like a model's figure, they include the
cost of the ends of documents.
"""

import hashlib
import json
import lzma
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gptjax.core import console, storage
from gptjax.core.console import UserError

SEPARATOR = b'\0'  # after each document, in baselines that work on bytes
MAX_TRAIN_BYTES = 64 * 2**20  # the window of `xz -9`, which uses no earlier text
MAX_VALIDATION_BYTES = 16 * 2**20  # xz takes half a minute
ABOUT = {
    'byte_unigram': 'entropy of single bytes, counted on the training split',
    'token_unigram': 'entropy of single tokens, counted on the training split',
    'xz': 'xz -9e of the validation documents alone',
    'xz_given_train': 'xz -9e of training and validation text together, less that '
    'of the training text',
}


def compute_baselines(
    workdir: Path, documents: Sequence[dict], tokenizer, cache_run: Path | None = None
) -> dict:
    """The baselines of `documents` given RUN's training split.

    They are cached in baselines.json of `cache_run` (None: RUN) for the same documents,
    training text and tokenizer. Baselines that work on bytes use the last 64 MiB of
    training text, which is all that xz can use, and the first 16 MiB of the documents.

    Returns:
        `bits_per_byte`, by the names that `about` explains; `sizes` of xz's output in
        bytes; `documents`; `validation_bytes` (text without separators);
        `train_bytes` (with separators); `separator`; `seconds`.
    """
    texts = [_utf8(document['text']) for document in documents]
    ends = np.cumsum([len(text) + len(SEPARATOR) for text in texts])
    num_whole = int(np.searchsorted(ends, MAX_VALIDATION_BYTES, side='right'))
    texts = texts[: max(1, num_whole)]
    validation = _join_documents(texts)
    path = workdir / 'documents' / 'train.jsonl'
    if not path.exists():
        raise UserError(f'{path} does not exist: run the stage `data` first')
    train = _join_documents(read_last_texts(path, MAX_TRAIN_BYTES))
    fingerprint = storage.fingerprint(
        [
            hashlib.sha256(validation).hexdigest(),
            hashlib.sha256(train).hexdigest(),
            path.stat().st_size,
            tokenizer.fingerprint,
            ABOUT,
        ]
    )
    cache_path = (cache_run or workdir) / 'baselines.json'
    cached = storage.read_undamaged(cache_path) or {}
    if cached.get('inputs') == fingerprint:
        return cached

    began = time.monotonic()
    counts = count_tokens(workdir / 'prepared' / 'train', tokenizer)
    num_bytes = sum(map(len, texts))
    tokens = np.zeros(tokenizer.vocab_size, np.int64)
    for text in tokenizer.encode_batch([text.decode() for text in texts]):
        np.add.at(tokens, [*text, tokenizer.eos_id], 1)
    # The longest input first, so that both threads are busy to the end.
    after, before, alone = measure_xz_sizes([train + validation, train, validation])
    byte_counts = [
        np.bincount(np.frombuffer(data, np.uint8), minlength=256)
        for data in (train, validation)
    ]
    result = dict(
        inputs=fingerprint,
        bits_per_byte=dict(
            byte_unigram=compute_unigram_bits(*byte_counts) / num_bytes,
            token_unigram=compute_unigram_bits(counts, tokens) / num_bytes,
            xz=8 * alone / num_bytes,
            xz_given_train=8 * (after - before) / num_bytes,
        ),
        about=ABOUT,
        sizes=dict(xz=alone, xz_train=before, xz_train_and_validation=after),
        documents=len(texts),
        validation_bytes=num_bytes,
        train_bytes=len(train),
        separator='one zero byte after each document',
        seconds=round(time.monotonic() - began, 2),
    )
    storage.write_json(cache_path, result)
    return result


def compute_unigram_bits(train_counts: np.ndarray, counts: np.ndarray) -> float:
    """Bits of symbols with `counts`, given the frequencies `train_counts` + 1."""
    smoothed = train_counts.astype(np.float64) + 1
    return float(-(counts * np.log2(smoothed / smoothed.sum())).sum())


def compute_token_unigram_nats(workdir: Path, documents: Sequence[dict], tokenizer):
    """-ln P of each document, given the training split's token frequencies + 1."""
    smoothed = count_tokens(workdir / 'prepared' / 'train', tokenizer) + 1.0
    nats = -np.log(smoothed / smoothed.sum())
    texts = tokenizer.encode_batch([document['text'] for document in documents])
    return np.array([nats[tokens].sum() + nats[tokenizer.eos_id] for tokens in texts])


def measure_xz_sizes(inputs: Sequence[bytes]) -> list[int]:
    """The size in bytes of each input after `xz -9e`."""
    chunk_size = 2**18
    num_megabytes = sum(map(len, inputs)) / 1e6
    with console.progress_bar('compressing', num_megabytes, 'MB') as advance:

        def size(data: bytes) -> int:
            preset = 9 | lzma.PRESET_EXTREME
            compressor = lzma.LZMACompressor(lzma.FORMAT_XZ, preset=preset)
            total = 0
            for start in range(0, len(data), chunk_size):
                chunk = data[start : start + chunk_size]
                total += len(compressor.compress(chunk))
                advance(len(chunk) / 1e6)
            return total + len(compressor.flush())

        # Two at a time: each takes up to 700 MB of memory. lzma releases the GIL.
        with ThreadPoolExecutor(2) as pool:
            return [*pool.map(size, inputs)]


def count_tokens(folder: Path, tokenizer) -> np.ndarray:
    """How often each token is a target in RUN/prepared/train, (V,) int64.

    Rows overlap by one token, so the first token of a row is not a target. A BOS after
    a document counts as its EOS.
    """
    shards = sorted(folder.glob('*/tokens-*.npy'))
    if not shards:
        raise UserError(f'{folder} has no shards: run the stage `prepare` first')
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for shard in shards:
        rows = np.load(shard, mmap_mode='r', allow_pickle=False)
        counts += np.bincount(rows[:, 1:].ravel(), minlength=tokenizer.vocab_size)
    counts[tokenizer.pad_id] = 0
    if tokenizer.bos_id != tokenizer.eos_id:
        counts[tokenizer.eos_id] += counts[tokenizer.bos_id]
        counts[tokenizer.bos_id] = 0
    return counts


def read_last_texts(path: Path, max_bytes: int) -> list[bytes]:
    """The last whole documents of a JSONL file, at most `max_bytes` of UTF-8.

    There are fewer if lines are over twice as long as their text (ids and escapes).
    """
    texts, room = [], max_bytes
    with open(path, 'rb') as file:
        start = max(0, path.stat().st_size - 2 * max_bytes)
        file.seek(start)
        if start:
            file.readline()  # the rest of a line
        lines = file.readlines()
    for line in reversed(lines):
        text = _utf8(json.loads(line)['text'])
        room -= len(text) + len(SEPARATOR)
        if room < 0:
            break
        texts.append(text)
    return texts[::-1]


def _join_documents(texts: list[bytes]) -> bytes:
    return b''.join(text + SEPARATOR for text in texts)


def _utf8(text: str) -> bytes:
    return text.encode('utf-8', 'replace')
