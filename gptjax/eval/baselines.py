"""Baselines that need no model: entropies and `xz -9e`, on the evaluated documents.

All are in bits per byte of the documents' own text, as a model's figure is, and all
pay for the ends of documents, as a model does.
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

SEPARATOR = b'\0'  # after each document, for what works on bytes
MAX_TRAIN_BYTES = 64 * 2**20  # the window of `xz -9`: it forgets what is before
MAX_VALIDATION_BYTES = 16 * 2**20  # half a minute of xz
ABOUT = {
    'byte_unigram': 'entropy of single bytes, counted on the training split',
    'token_unigram': 'entropy of single tokens, counted on the training split',
    'xz': 'xz -9e of the validation documents alone',
    'xz_given_train': 'xz -9e of training and validation text together, less that '
    'of the training text',
}


def compute_baselines(
    workdir: Path, documents: Sequence[dict], tokenizer, keep_in: Path | None = None
) -> dict:
    """The baselines of `documents` given RUN's training split.

    Kept in baselines.json, of RUN or of the run directory `keep_in`: the same
    documents, training text and tokenizer give it back at once. What works on bytes
    uses at most the last 64 MiB of training text, which is what xz can still see, and
    the first 16 MiB of the documents.

    Returns:
        `bits_per_byte` by the names of `about`, which says what each is; `sizes`,
        those of xz in bytes; `documents`, `validation_bytes` (text, no separators),
        `train_bytes` (with them), `separator`, `seconds`.
    """
    texts = [_utf8(document['text']) for document in documents]
    ends = np.cumsum([len(text) + len(SEPARATOR) for text in texts])
    num_whole = int(np.searchsorted(ends, MAX_VALIDATION_BYTES, side='right'))
    texts = texts[: max(1, num_whole)]
    validation = _join_documents(texts)
    path = workdir / 'documents' / 'train.jsonl'
    if not path.exists():
        raise UserError(f'{path} is not there: run the stage `data` first')
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
    kept_path = (keep_in or workdir) / 'baselines.json'
    if (
        kept_path.exists()
        and (result := storage.read_json(kept_path))['inputs'] == fingerprint
    ):
        return result

    began = time.monotonic()
    counts = count_tokens(workdir / 'prepared' / 'train', tokenizer)
    num_bytes = sum(map(len, texts))
    tokens = np.zeros(tokenizer.vocab_size, np.int64)
    for text in tokenizer.encode_batch([text.decode() for text in texts]):
        np.add.at(tokens, [*text, tokenizer.eos_id], 1)
    alone, before, after = measure_xz_sizes([validation, train, train + validation])
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
    storage.write_json(kept_path, result)
    return result


def compute_unigram_bits(train_counts: np.ndarray, counts: np.ndarray) -> float:
    """Bits of symbols with `counts` under frequencies of `train_counts` plus one."""
    smoothed = train_counts.astype(np.float64) + 1
    return float(-(counts * np.log2(smoothed / smoothed.sum())).sum())


def measure_xz_sizes(inputs: Sequence[bytes]) -> list[int]:
    """The size in bytes of each input as `xz -9e` writes it, two at a time."""
    chunk_size = 2**18
    with console.progress_bar(
        'compressing', sum(map(len, inputs)) / 1e6, 'MB'
    ) as advance:

        def size(data: bytes) -> int:
            # xz itself, with the window of 64 MiB that -9 has; it frees the GIL
            compressor = lzma.LZMACompressor(
                lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME
            )
            total = 0
            for start in range(0, len(data), chunk_size):
                chunk = data[start : start + chunk_size]
                total += len(compressor.compress(chunk))
                advance(len(chunk) / 1e6)
            return total + len(compressor.flush())

        # The longest first; each may take 700 MB of memory, so no more than two.
        order = sorted(range(len(inputs)), key=lambda i: -len(inputs[i]))
        with ThreadPoolExecutor(2) as pool:
            sizes = {i: pool.submit(size, inputs[i]) for i in order}
    return [sizes[i].result() for i in range(len(inputs))]


def count_tokens(folder: Path, tokenizer) -> np.ndarray:
    """How often each token is a target in RUN/prepared/train: (V,) int64.

    Rows overlap by one token, so the first of each row is no target; a BOS after a
    document stands for its EOS.
    """
    shards = sorted(folder.glob('*/tokens-*.npy'))
    if not shards:
        raise UserError(f'{folder} has no shards: run the stage `prepare` first')
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for shard in shards:
        rows = np.load(shard, mmap_mode='r', allow_pickle=False)
        counts += np.bincount(rows[:, 1:].ravel(), minlength=tokenizer.vocab_size)
    counts[tokenizer.eos_id] += counts[tokenizer.bos_id]
    counts[[tokenizer.bos_id, tokenizer.pad_id]] = 0
    return counts


def read_last_texts(path: Path, max_bytes: int) -> list[bytes]:
    """The last documents of a JSONL file, whole, at most `max_bytes` of UTF-8.

    Fewer where lines are over twice as long as their text, from ids and escapes.
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
