"""The stage that learns the vocabulary from the training split.

    RUN/tokenizer/tokenizer.model, manifest.json

SentencePiece trains on what `_sentences` yields. Three habits of its trainer would
lose text without a word, and are met there: it skips sentences above a length,
skips those that hold its mark of the unknown (U+2585), and takes '▁' (U+2581) for a
space. Its line-based reader, which drops newlines, is not used.
"""

import io
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import sentencepiece
from ml_collections import ConfigDict

from gptjax.core import artifact, console, storage
from gptjax.core.console import UserError
from gptjax.tokenizer.tokenizer import BOS, CHAT_TURNS, EOS, PAD, SPACE, Tokenizer

SENTENCE_CHARACTERS = 4000
SLABS = 1000  # places in a large file from which text is read
NUM_THREADS = 4  # fixed: sums of floats, and so the model, depend on their number
NUM_FIXED = 3 + len(CHAT_TURNS) + 256  # special tokens and bytes
RESERVED = re.compile('[\0\u2581\u2585]')

OPTIONS = dict(
    byte_fallback=True,
    normalization_rule_name='identity',
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    # rarer characters go through their bytes and leave room for longer pieces
    character_coverage=0.9995,
    required_chars=SPACE,  # but never the space: its bytes would be those of '▁'
    split_digits=True,  # numbers are read digit by digit, whatever their length
    max_sentence_length=4 * SENTENCE_CHARACTERS,  # in bytes
    unk_id=0,
    unk_piece=PAD,
    bos_id=1,
    bos_piece=BOS,
    eos_id=2,
    eos_piece=EOS,
    pad_id=-1,
    control_symbols=list(CHAT_TURNS),
    num_threads=NUM_THREADS,
    minloglevel=2,
)


def train_tokenizer(config: ConfigDict, workdir: Path) -> dict:
    """Trains RUN/tokenizer on RUN/documents/train.jsonl; returns its manifest.

    The same text and config give the same model, byte for byte. At most
    `tokenizer.train_characters` are read, from places spread evenly over the file,
    so the time is bounded for any amount of text.

    The manifest holds the model's SHA-256 and, over the beginning of the validation
    split, UTF-8 bytes per token.
    """
    documents = artifact.require(workdir / 'documents', 'data')
    inputs = {f'tokenizer.{name}': value for name, value in config.tokenizer.items()}
    inputs['documents'] = documents['fingerprint']
    return artifact.build(
        workdir / 'tokenizer',
        inputs,
        lambda folder: _write_tokenizer(config, workdir / 'documents', folder),
        needs=['tokenizer.model'],
    )


def describe_tokenizer(manifest: dict) -> str:
    return (
        f'tokenizer: {manifest["vocab_size"]:,} pieces, '
        f'{manifest["bytes_per_token"]:.2f} bytes each'
    )


TOKENIZER = artifact.Artifact('tokenizer', train_tokenizer, describe_tokenizer)


def _write_tokenizer(config: ConfigDict, documents: Path, folder: Path) -> dict:
    began = time.monotonic()
    settings = config.tokenizer
    texts = list(read_texts(documents / 'train.jsonl', settings.train_characters))
    with console.progress_bar('training the tokenizer', 0, 'seconds') as advance:
        with ThreadPoolExecutor(1) as executor:
            training = executor.submit(
                train_model, texts, settings.kind, settings.vocab_size
            )
            while wait([training], timeout=1).not_done:
                advance(1)
        model = training.result()
    tokenizer = Tokenizer(model)
    held_out = list(read_texts(documents / 'validation.jsonl', 1_000_000))
    storage.write_bytes(folder / 'tokenizer.model', model)
    return dict(
        sha256=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        specials=tokenizer.specials,
        train_characters=sum(map(len, texts)),
        bytes_per_token=bytes_per_token(tokenizer, held_out),
        seconds=round(time.monotonic() - began, 2),
    )


def train_model(texts: list[str], kind: str, vocab_size: int) -> bytes:
    """The bytes of a SentencePiece model.

    Args:
        texts: what to learn from; newlines and all other characters count.
        kind: 'bpe' (Sennrich et al. 2016) or 'unigram' (Kudo 2018).
        vocab_size: special tokens and the 256 bytes included. Where the text allows
            none of that size, the error says which one it does.
    """
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=written,
            model_type=kind,
            vocab_size=max(NUM_FIXED, vocab_size),  # below, its errors are none
            **OPTIONS,
        )
    except RuntimeError as error:
        raise UserError(_explain(str(error), vocab_size)) from error
    return written.getvalue()


def read_texts(path: Path, characters: int) -> Iterator[str]:
    """Texts of a JSONL file's documents, about `characters` in all.

    A file with more is cut into `SLABS` slabs of as many bytes, and as many characters
    are read of each: of the documents that begin in it or, where none does, of the
    one that it lies in the middle of. Nothing is read twice.
    """
    size = path.stat().st_size
    start, stop, text, read = 0, 0, '', 0  # the last line: its bytes, text, how far
    with open(path, 'rb') as file:
        if size <= characters:
            yield from (json.loads(line)['text'] for line in file)
            return
        for slab in range(SLABS):
            begin, end = (size * place // SLABS for place in (slab, slab + 1))
            left = characters // SLABS + (slab < characters % SLABS)
            if left == 0 or begin == end:
                continue
            if stop <= begin:
                file.seek(max(0, begin - 1))
                if begin:
                    file.readline()  # the rest of a line that begins before this slab
                if file.tell() >= end:  # and that does not end in it
                    start = _line_start(file, begin)
                    file.seek(start)
                    text, read = json.loads(file.readline())['text'], 0
                    stop = file.tell()
            if stop >= end:
                place = max(read, len(text) * (begin - start) // (stop - start))
                read = place + left
                yield text[place:read]
                continue
            while left > 0 and file.tell() < end:
                start = file.tell()
                text = json.loads(file.readline())['text']
                stop, read = file.tell(), left
                left -= len(text[:read])
                yield text[:read]


def _line_start(file: io.BufferedReader, place: int, block: int = 2**16) -> int:
    """Where the line begins that the byte before `place` is in."""
    while place:
        begin = max(0, place - block)
        file.seek(begin)
        newline = file.read(place - begin).rfind(b'\n')
        if newline >= 0:
            return begin + newline + 1
        place = begin
    return 0


def bytes_per_token(tokenizer: Tokenizer, texts: list[str]) -> float:
    """UTF-8 bytes of the texts over their number of tokens."""
    tokens = sum(map(len, tokenizer.encode_arrays(texts, NUM_THREADS)))
    return sum(len(text.encode('utf-8', 'replace')) for text in texts) / max(1, tokens)


def _sentences(texts: list[str]) -> Iterator[str]:
    for text in texts:
        for part in RESERVED.split(text.encode('utf-8', 'replace').decode()):
            for begin in range(0, len(part), SENTENCE_CHARACTERS):
                yield part[begin : begin + SENTENCE_CHARACTERS]


def _explain(error: str, vocab_size: int) -> str:
    """What to do about an error of SentencePiece."""
    if match := re.search(r'too high.*<= (\d+)', error):
        return (
            f'tokenizer.vocab_size={vocab_size} is more than the training text allows: '
            f'use at most {match[1]}, or more text'
        )
    if match := re.search(r'smaller than required_chars\. \d+ vs (\d+)', error):
        return (
            f'tokenizer.vocab_size={vocab_size} has no room for the special tokens, '
            f'the bytes and the characters of the text: use at least {match[1]}'
        )
    if 'sentences_.empty()' in error:
        return 'the training text is empty: give more in data.sources'
    return f'tokenizer.vocab_size={vocab_size}: SentencePiece refuses: {error}'
