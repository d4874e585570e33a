"""How well a model predicts whole documents: loss, perplexity, bits per byte.

A document of tokens a b c is read as `BOS a b c` and predicts `a b c EOS`. Where it
is longer than the context, a window of `context` inputs moves over it by `stride`,
and each scores what the one before did not reach. With context 4, stride 2:

    inputs    BOS  a   b   c   d   e   f
    targets    a   b   c   d   e   f  EOS
    window 1  [a   b   c   d]
    window 2           .   .  [e   f]         . read, not scored again
    window 3                   .   .  [EOS]

So every token is predicted exactly once, by at least context - stride + 1 tokens
before it where the document has them. Short windows share a row as packed segments.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gptjax.core import console
from gptjax.core.console import UserError

GROUP_CHARACTERS = 2**23  # tokenised and packed at once: bounds the memory


class Measured(NamedTuple):
    """The sums of every document, whose sums in turn give the figures."""

    columns: dict[str, np.ndarray]  # (documents,) `nats`, `tokens`, `bytes`, `words`
    stride: int
    rows: int
    seconds: float


def measure_documents(
    score_batch: Callable[[dict], np.ndarray],
    documents: Sequence[dict],
    tokenizer,
    context: int,
    stride: int = 0,
    batch_size: int = 32,
) -> Measured:
    """What each document (a dict with `source` and `text`) costs the model.

    Args:
        score_batch: from a batch of `batches_of` to ln P of the targets, (batch_size,
            context) float32. Read one batch late, so an asynchronous function keeps
            the device busy.
        context: the inputs of a window.
        stride: how far it moves; 0: half the context.
    """
    stride = stride or max(context // 2, 1)
    if not 1 <= stride <= context:
        raise UserError(
            f'eval.stride={stride} is outside 1 to the context of {context}: use 0 '
            'for half the context'
        )
    if not any(document['text'] for document in documents):
        raise UserError(
            'the validation split has no text: raise data.validation_fraction or add '
            'documents'
        )
    began = time.monotonic()
    nats, num_tokens = np.zeros((2, len(documents)))  # nats: -sum ln P
    num_rows = 0
    with console.progress_bar('evaluating', len(documents), 'documents') as advance:
        for first, group in _groups(documents):
            here = slice(first, first + len(group))
            tokens = tokenizer.encode_batch([document['text'] for document in group])
            streams = [
                np.array([tokenizer.bos_id, *text, tokenizer.eos_id], np.int32)
                for text in tokens
            ]
            num_tokens[here] = [len(stream) - 1 for stream in streams]
            rows = pack(windows_of(streams, context, stride), context)
            num_rows += len(rows)
            for logprobs, owners, _ in score_rows(
                score_batch, streams, rows, context, batch_size, tokenizer.pad_id
            ):
                add_scores(nats[here], -np.asarray(logprobs), owners)
                advance(len(group) * batch_size / max(len(rows), batch_size))

    texts = [document['text'] for document in documents]
    columns = dict(
        nats=nats,
        tokens=num_tokens,
        bytes=np.array([len(t.encode('utf-8', 'replace')) for t in texts], np.float64),
        words=np.array([len(text.split()) for text in texts], np.float64),
    )
    return Measured(columns, stride, num_rows, round(time.monotonic() - began, 2))


def summarize(measured: Measured, sources: Sequence[str], context: int) -> dict:
    """Figures over whole documents, together and by source (`by_source`).

    `loss` is nats a token, `bits_per_byte` -sum ln P / (ln 2 UTF-8 bytes),
    `word_perplexity` exp(-sum ln P / words), words by white space. BOS is given and not
    predicted; EOS is predicted, so it is in the sums and in `tokens`, though it has no
    bytes.
    """
    sources = np.array(sources)
    return dict(
        _summary_figures(measured.columns),
        by_source={
            str(name): _summary_figures(
                select_documents(measured.columns, sources == name)
            )
            for name in np.unique(sources)
        },
        context=context,
        stride=measured.stride,
        rows=measured.rows,
        seconds=measured.seconds,
    )


def _summary_figures(columns) -> dict:
    sums = {name: column.sum() for name, column in columns.items()}
    return dict(
        {name: float(figure(sums)) for name, figure in FIGURES.items()},
        tokens=int(sums['tokens']),
        bytes=int(sums['bytes']),
        words=int(sums['words']),
        documents=len(columns['nats']),
    )


def select_documents(columns: dict, chosen: np.ndarray) -> dict:
    """The columns of some documents; `chosen` is bool, (documents,)."""
    return {name: column[chosen] for name, column in columns.items()}


# ---- windows in rows


def windows_of(streams, context: int, stride: int) -> list[tuple[int, int, int, int]]:
    """(stream, first input, first scored, end) of every window, ends exclusive.

    `streams` are token arrays `BOS … EOS`; n + 1 tokens have n inputs.
    """
    windows = []
    for number, stream in enumerate(streams):
        num_inputs = len(stream) - 1
        start, scored = 0, 0
        while scored < num_inputs:
            end = min(start + context, num_inputs)
            windows.append((number, start, scored, end))
            start, scored = start + stride, end
    return windows


def pack(windows: list[tuple], context: int) -> list[list[tuple]]:
    """Rows of windows whose inputs fit in `context` together, longest first.

    Each row takes the longest window left, then whatever longest still fits: rows of
    the default data are 99% full, and the cost is in proportion to the windows.
    """
    by_length = [[] for _ in range(context + 1)]
    for window in reversed(windows):
        by_length[window[3] - window[1]].append(window)
    longest, rows = context, []
    while True:
        while longest and not by_length[longest]:
            longest -= 1
        if not longest:
            return rows
        row, room = [], context
        length = longest
        while length:
            if by_length[length]:
                row.append(by_length[length].pop())
                room -= length
                length = min(length, room)
            else:
                length -= 1
        rows.append(row)


def _groups(documents) -> Iterator[tuple[int, Sequence[dict]]]:
    """(place of the first, documents) in groups of GROUP_CHARACTERS or one more."""
    first, size = 0, 0
    for place, document in enumerate(documents):
        size += len(document['text'])
        if size >= GROUP_CHARACTERS or place == len(documents) - 1:
            yield first, documents[first : place + 1]
            first, size = place + 1, 0


def score_rows(
    score_batch: Callable[[dict], Any], streams, rows, context, batch_size, pad_id
) -> Iterator[tuple[Any, np.ndarray, int]]:
    """(what `score_batch` returns, owners, number of rows) of each batch of rows.

    `owners` (B, T) is the stream that a target scores for, or -1. A batch is yielded
    after the next one was given to the device.
    """
    pending = []
    left = len(rows)
    for batch, owners in batches_of(streams, rows, context, batch_size, pad_id):
        pending.append((score_batch(batch), owners, min(batch_size, left)))
        left -= batch_size
        if len(pending) > 1:
            yield pending.pop(0)
    yield from pending


def add_scores(sums: np.ndarray, scores: np.ndarray, owners: np.ndarray) -> None:
    """Adds a batch's scores (B, T) to the float64 sums of their streams, in place."""
    scored = owners >= 0
    weights = np.asarray(scores)[scored]
    sums += np.bincount(owners[scored], weights=weights, minlength=len(sums))


def batches_of(streams, rows, context, batch_size, pad_id) -> Iterator[tuple]:
    """(batch, owners): owners (B, T) is the stream a target scores for, or -1.

    A batch is the dict of (batch_size, context) arrays that training uses.
    """
    for first in range(0, len(rows), batch_size):
        shape = (batch_size, context)
        batch = dict(
            inputs=np.full(shape, pad_id, np.int32),
            targets=np.full(shape, pad_id, np.int32),
            segments=np.zeros(shape, np.int32),
            positions=np.zeros(shape, np.int32),
            weights=np.zeros(shape, np.float32),
        )
        owners = np.full(shape, -1)
        for row, windows in enumerate(rows[first : first + batch_size]):
            left = 0
            for segment, (number, start, scored, end) in enumerate(windows, 1):
                right = left + end - start
                batch['inputs'][row, left:right] = streams[number][start:end]
                batch['targets'][row, left:right] = streams[number][start + 1 : end + 1]
                batch['segments'][row, left:right] = segment
                batch['positions'][row, left:right] = np.arange(end - start)
                batch['weights'][row, left + scored - start : right] = 1
                owners[row, left + scored - start : right] = number
                left = right
        yield batch, owners


# ---- figures


def _nats_per(sums, unit: str):
    """Nats for each token, byte or word; nan where there is none."""
    number = sums[unit]
    return np.where(number > 0, sums['nats'], np.nan) / np.maximum(number, 1)


def _exp(x):
    with np.errstate(over='ignore'):  # of a model that knows nothing: infinite
        return np.exp(x)


# Functions of the sums of some documents.
FIGURES = dict(
    loss=lambda sums: _nats_per(sums, 'tokens'),
    token_perplexity=lambda sums: _exp(_nats_per(sums, 'tokens')),
    bits_per_byte=lambda sums: _nats_per(sums, 'bytes') / math.log(2),
    word_perplexity=lambda sums: _exp(_nats_per(sums, 'words')),
)
