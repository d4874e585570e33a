"""The stage `tokenizer`: trains a SentencePiece model on the training split.

    RUN/tokenizer/tokenizer.model, manifest.json

SentencePiece's trainer would silently lose text: it skips sentences above a length,
skips sentences with its mark for unknown text (U+2585), reads '▁' (U+2581) as a space,
and its reader of files drops newlines. `_sentences` prevents this.
"""

import io
import json
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import sentencepiece
from ml_collections import ConfigDict

from gptjax.core import artifact, console, storage
from gptjax.core.console import UserError
from gptjax.tokenizer.tokenizer import (
    BOS,
    CHAT_TURNS,
    EOS,
    FILL_IN_THE_MIDDLE,
    PAD,
    SPACE,
    Tokenizer,
)

SENTENCE_CHARACTERS = 4000
NUM_PARTS = 1000  # parts of a large file from which text is read
NUM_THREADS = 4  # fixed: the model depends on it, through sums of floats
NUM_FIXED = 3 + len(CHAT_TURNS) + 256  # special tokens and bytes
RESERVED = re.compile('[\0\u2581\u2585]')

OPTIONS = dict(
    byte_fallback=True,
    normalization_rule_name='identity',
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    character_coverage=0.9995,  # rarer characters are encoded as bytes
    required_chars=SPACE,  # as bytes, a space could not be distinguished from '▁'
    split_digits=True,  # every digit is a token
    max_sentence_length=4 * SENTENCE_CHARACTERS,  # in bytes
    unk_id=0,
    unk_piece=PAD,
    bos_id=1,
    bos_piece=BOS,
    eos_id=2,
    eos_piece=EOS,
    pad_id=-1,
    num_threads=NUM_THREADS,
    minloglevel=2,
)


class VocabularyTooLarge(UserError):
    """The text allows only `largest` tokens."""

    def __init__(self, vocab_size: int, largest: int):
        super().__init__(
            f'tokenizer.vocab_size={vocab_size} is more than the training text allows: '
            f'use at most {largest}, or more text'
        )
        self.largest = largest


def train_tokenizer(config: ConfigDict, workdir: Path) -> dict:
    """Trains RUN/tokenizer on RUN/documents/train.jsonl; returns the manifest.

    The same text and config give the same model, byte for byte. At most
    `tokenizer.train_characters` are read, spread evenly over the file, so the time is
    bounded for any amount of text. If it allows fewer than `tokenizer.vocab_size`
    tokens, the tokenizer has as many as it allows.

    The manifest has the model's SHA-256, and the UTF-8 bytes per token of the beginning
    of the validation split.
    """
    documents = artifact.require(workdir / 'documents', 'data')
    inputs = {f'tokenizer.{name}': value for name, value in config.tokenizer.items()}
    inputs['documents'] = documents['fingerprint']
    if _fills_in_the_middle(config):
        inputs['data.augment'] = 'fill_in_the_middle'
    return artifact.build(
        workdir / 'tokenizer',
        inputs,
        lambda folder: _write_tokenizer(config, workdir / 'documents', folder),
        needs=['tokenizer.model'],
    )


def _fills_in_the_middle(config: ConfigDict) -> bool:
    return 'fill_in_the_middle' in config.data.augment


def describe_tokenizer(manifest: dict) -> str:
    size, wanted = manifest['vocab_size'], manifest['settings']['tokenizer.vocab_size']
    few = f', as the text allows no more (tokenizer.vocab_size={wanted})'
    return (
        f'tokenizer: {size:,} tokens{few if size < wanted else ""}, '
        f'{manifest["bytes_per_token"]:.2f} bytes per token'
    )


TOKENIZER = artifact.Artifact('tokenizer', train_tokenizer, describe_tokenizer)


def _write_tokenizer(config: ConfigDict, documents: Path, folder: Path) -> dict:
    began = time.monotonic()
    settings = config.tokenizer
    texts = list(read_texts(documents / 'train.jsonl', settings.train_characters))
    with console.progress_bar('training the tokenizer', 0, 'seconds') as advance:
        with ThreadPoolExecutor(1) as executor:
            training = executor.submit(
                _train_up_to_size,
                texts,
                settings.kind,
                settings.vocab_size,
                FILL_IN_THE_MIDDLE if _fills_in_the_middle(config) else (),
            )
            while wait([training], timeout=1).not_done:
                advance(1)
        model = training.result()
    tokenizer = Tokenizer(model)
    held_out = list(read_texts(documents / 'validation.jsonl', 1_000_000))
    num_bytes = sum(len(text.encode('utf-8', 'replace')) for text in held_out)
    num_tokens = sum(map(len, tokenizer.encode_arrays(held_out, NUM_THREADS)))
    storage.write_bytes(folder / 'tokenizer.model', model)
    return dict(
        sha256=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        specials=tokenizer.specials,
        train_characters=sum(map(len, texts)),
        bytes_per_token=num_bytes / max(1, num_tokens),
        seconds=round(time.monotonic() - began, 2),
    )


def _train_up_to_size(texts: list[str], kind: str, vocab_size: int, *more) -> bytes:
    try:
        return train_model(texts, kind, vocab_size, *more)
    except VocabularyTooLarge as error:
        return train_model(texts, kind, error.largest, *more)


def train_model(
    texts: list[str], kind: str, vocab_size: int, more_specials: Sequence[str] = ()
) -> bytes:
    """Trains a SentencePiece model; returns its bytes.

    Args:
        kind: 'bpe' (Sennrich et al. 2016) or 'unigram' (Kudo 2018).
        vocab_size: includes the special tokens and the 256 bytes. If the texts do not
            allow this size, the UserError names the nearest one that they allow.
        more_specials: special tokens besides those that every tokenizer has.
    """
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=written,
            model_type=kind,
            # Below the first number it names no size.
            vocab_size=max(NUM_FIXED + len(more_specials), vocab_size),
            control_symbols=[*CHAT_TURNS, *more_specials],
            **OPTIONS,
        )
    except RuntimeError as error:
        if match := re.search(r'too high.*<= (\d+)', str(error)):
            raise VocabularyTooLarge(vocab_size, int(match[1])) from error
        raise UserError(_explain(str(error), vocab_size)) from error
    return written.getvalue()


def read_texts(path: Path, characters: int) -> Iterator[str]:
    """Yields texts of a JSON Lines file's documents, about `characters` in total.

    A longer file is divided into NUM_PARTS parts of equal bytes, and an equal number of
    characters is read from each part. They come from the documents that begin in the
    part, or if none does, from the document that spans it. No text is read twice.
    """
    size = path.stat().st_size
    if size <= characters:
        yield from (document['text'] for document in storage.read_jsonl(path))
        return
    # The last line: its first and last byte, its text, and the characters read of it.
    start, stop, text, read = 0, 0, '', 0
    with open(path, 'rb') as file:
        for part in range(NUM_PARTS):
            begin, end = (size * place // NUM_PARTS for place in (part, part + 1))
            left = characters // NUM_PARTS + (part < characters % NUM_PARTS)
            if left == 0 or begin == end:
                continue
            if stop <= begin:
                file.seek(max(0, begin - 1))
                if begin:
                    file.readline()  # the rest of a line that begins before this part
                if file.tell() >= end:  # that line spans this part
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
    """The position of the first byte of the line that contains byte `place` - 1."""
    while place:
        begin = max(0, place - block)
        file.seek(begin)
        newline = file.read(place - begin).rfind(b'\n')
        if newline >= 0:
            return begin + newline + 1
        place = begin
    return 0


def _sentences(texts: list[str]) -> Iterator[str]:
    """Yields parts that SentencePiece reads whole: 'a▁b\\n' → 'a', 'b\\n'"""
    for text in texts:
        for part in RESERVED.split(text.encode('utf-8', 'replace').decode()):
            for begin in range(0, len(part), SENTENCE_CHARACTERS):
                yield part[begin : begin + SENTENCE_CHARACTERS]


def _explain(error: str, vocab_size: int) -> str:
    """Explains an error of SentencePiece, and what to do about it."""
    if match := re.search(r'smaller than required_chars\. \d+ vs (\d+)', error):
        return (
            f'tokenizer.vocab_size={vocab_size} has no room for the special tokens, '
            f'the bytes and the characters of the text: use at least {match[1]}'
        )
    if 'sentences_.empty()' in error:
        return 'the training text is empty: give more in data.sources'
    return f'tokenizer.vocab_size={vocab_size}: SentencePiece refuses: {error}'
