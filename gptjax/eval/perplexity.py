"""How well a model predicts whole documents: loss, perplexity, bits per byte.

For a document with tokens a b c, the model reads `BOS a b c` and predicts `a b c EOS`.
If the document is longer than the context, a window of `context` inputs moves over it
by `stride`, and scores the tokens that no earlier window scored. With context 4 and
stride 2:

    inputs    BOS  a   b   c   d   e   f
    targets    a   b   c   d   e   f  EOS
    window 1  [a   b   c   d]
    window 2           .   .  [e   f]         . is read, but not scored again
    window 3                   .   .  [EOS]

So every token is scored exactly once, given at least context - stride + 1 earlier
tokens if the document has them. Short windows share a row as packed segments.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gptjax.core import console
from gptjax.core.console import UserError
from gptjax.eval.bootstrap import finite_or_none

GROUP_CHARACTERS = 2**23  # tokenised and packed at once, to limit the memory


def measure_documents(
    score_batch: Callable[[dict], np.ndarray],
    documents: Sequence[dict],
    tokenizer,
    context: int,
    stride: int = 0,
    batch_size: int = 32,
) -> tuple[dict[str, np.ndarray], dict]:
    """Scores documents, which are dicts with `text`.

    BOS is not predicted. EOS is: it counts in `nats` and in `tokens`, and has no bytes.
    Words are separated by white space.

    Args:
        score_batch: from a batch of `make_batch` to ln P of the targets, (batch_size,
            context) float32. The result is read one batch late, so an asynchronous
            function keeps the device busy.
        context: inputs of a window.
        stride: of the window; 0: half the context.

    Returns:
        The columns `nats` (-ln P), `tokens`, `bytes` and `words`, (documents,) each;
        and the facts `context`, `stride`, `rows` and `seconds`.
    """
    stride = stride or max(context // 2, 1)
    if not 1 <= stride <= context:
        raise UserError(
            f'eval.stride={stride} is not between 1 and the context of {context}: use '
            '0 for half the context'
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
    seconds = round(time.monotonic() - began, 2)
    return columns, dict(context=context, stride=stride, rows=num_rows, seconds=seconds)


def summarize(columns: dict[str, np.ndarray]) -> dict:
    """The `FIGURES` of all documents together, None if infinite, and counts."""
    sums = {name: column.sum() for name, column in columns.items()}
    return dict(
        {name: finite_or_none(figure(sums)) for name, figure in FIGURES.items()},
        tokens=int(sums['tokens']),
        bytes=int(sums['bytes']),
        words=int(sums['words']),
        documents=len(columns['nats']),
    )


# ---- windows in rows


def windows_of(streams, context: int, stride: int) -> list[tuple[int, int, int, int]]:
    """(stream, first input, first scored input, end) of every window; end exclusive.

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
    """Rows of windows that together have at most `context` inputs.

    Each row takes the longest remaining window, then again and again the longest one
    that fits. Rows of the default data are 99% full; the time is linear in the windows.
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
    """(index of the first, documents): groups that end after GROUP_CHARACTERS."""
    first, size = 0, 0
    for end, document in enumerate(documents, 1):
        size += len(document['text'])
        if size >= GROUP_CHARACTERS or end == len(documents):
            yield first, documents[first:end]
            first, size = end, 0


def score_rows(
    score_batch: Callable[[dict], Any], streams, rows, context, batch_size, pad_id
) -> Iterator[tuple[Any, np.ndarray, int]]:
    """Yields (result of `score_batch`, owners, number of rows) of each batch of rows.

    See `make_batch`. A batch is yielded after the next one was sent to the device.
    """
    pending = []
    for first in range(0, len(rows), batch_size):
        batch_rows = rows[first : first + batch_size]
        batch, owners = make_batch(streams, batch_rows, (batch_size, context), pad_id)
        pending.append((score_batch(batch), owners, len(batch_rows)))
        if len(pending) > 1:
            yield pending.pop(0)
    yield from pending


def add_scores(sums: np.ndarray, scores: np.ndarray, owners: np.ndarray) -> None:
    """Adds scores (B, T) to the float64 sums of their streams, in place."""
    scored = owners >= 0
    weights = np.asarray(scores)[scored]
    sums += np.bincount(owners[scored], weights=weights, minlength=len(sums))


def make_batch(streams, rows, shape, pad_id) -> tuple[dict, np.ndarray]:
    """(a training batch, owners): the stream that each target is scored for, or -1.

    All arrays have the shape (batch_size, context).
    """
    batch = dict(
        inputs=np.full(shape, pad_id, np.int32),
        targets=np.full(shape, pad_id, np.int32),
        segments=np.zeros(shape, np.int32),
        positions=np.zeros(shape, np.int32),
        weights=np.zeros(shape, np.float32),
    )
    owners = np.full(shape, -1)
    for row, windows in enumerate(rows):
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
    return batch, owners


# ---- figures


def _nats_per(sums, unit: str):
    """Nats per token, byte or word; nan if there is none."""
    number = sums[unit]
    return np.where(number > 0, sums['nats'], np.nan) / np.maximum(number, 1)


def _exp(x):
    with np.errstate(over='ignore'):  # infinite for a very bad model
        return np.exp(x)


# Functions of the sums of columns.
FIGURES = dict(
    loss=lambda sums: _nats_per(sums, 'tokens'),
    token_perplexity=lambda sums: _exp(_nats_per(sums, 'tokens')),
    bits_per_byte=lambda sums: _nats_per(sums, 'bytes') / math.log(2),
    word_perplexity=lambda sums: _exp(_nats_per(sums, 'words')),
)
