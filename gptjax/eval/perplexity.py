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

import numpy as np

from gptjax import progress
from gptjax.errors import UserError

GROUP_CHARACTERS = 2**23  # tokenised and packed at once: bounds the memory


def evaluate_documents(
    token_logprobs: Callable[[dict], np.ndarray],
    documents: Sequence[dict],
    tokenizer,
    context: int,
    stride: int = 0,
    batch_size: int = 32,
) -> dict:
    """Figures over whole documents, together and by source.

    Args:
        token_logprobs: from a batch, the dict of (batch_size, context) arrays that
            training uses (`inputs`, `targets`, `segments`, `positions`, int32, and
            `weights`, float32), to ln P of the targets, (batch_size, context)
            float32. The shape is always the same. Given in turn and read one batch
            late, so an asynchronous function keeps the device busy.
        documents: dicts with `source` and `text`.
        tokenizer: has `encode_batch`, `bos_id`, `eos_id` and `pad_id`.
        context: the inputs of a window.
        stride: how far it moves; 0: half the context.
        batch_size: rows in a batch.

    Returns:
        `loss` (nats a token), `token_perplexity`, `bits_per_byte` (-sum ln P /
        (ln 2 UTF-8 bytes)), `word_perplexity` (exp(-sum ln P / words), words by
        white space), `tokens`, `bytes`, `words`, `documents`; the same for each
        source in `by_source`; and `context`, `stride`, `rows`, `seconds`. BOS is
        given and not predicted; EOS is predicted, so it is in the sums and in
        `tokens`, though it has no bytes.

    Raises:
        UserError: the stride is outside 1 to context, or there is no text.
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
    nats = np.zeros(len(documents))
    lengths = np.zeros(len(documents), np.int64)
    num_rows = 0
    with progress.bar('evaluating', len(documents), 'documents') as advance:
        for first, group in _groups(documents):
            tokens = tokenizer.encode_batch([document['text'] for document in group])
            streams = [
                np.array([tokenizer.bos_id, *its, tokenizer.eos_id], np.int32)
                for its in tokens
            ]
            lengths[first : first + len(group)] = [len(s) - 1 for s in streams]
            rows = pack(windows_of(streams, context, stride), context)
            num_rows += len(rows)
            batches = _batches(streams, rows, context, batch_size, tokenizer.pad_id)
            pending = None
            for batch, owners in batches:
                pending, settled = (token_logprobs(batch), owners), pending
                advance(len(group) * batch_size / max(len(rows), batch_size))
                _add(nats[first:], settled)
            _add(nats[first:], pending)

    bytes_of = [len(d['text'].encode('utf-8', 'replace')) for d in documents]
    words_of = [len(d['text'].split()) for d in documents]
    table = np.stack([nats, lengths, bytes_of, words_of])  # (4, documents) float64
    sources = np.array([document['source'] for document in documents])
    return dict(
        _figures(table),
        by_source={
            str(name): _figures(table[:, sources == name])
            for name in np.unique(sources)
        },
        context=context,
        stride=stride,
        rows=num_rows,
        seconds=round(time.monotonic() - began, 2),
    )


def windows_of(streams, context: int, stride: int) -> list[tuple[int, int, int, int]]:
    """(stream, first input, first scored, end) of every window, ends exclusive.

    Args:
        streams: token arrays `BOS … EOS`; n + 1 tokens have n inputs.
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


def _batches(streams, rows, context, batch_size, pad_id):
    """(batch, owners): owners (B, T) is the stream a target scores for, or -1."""
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


def _add(nats, settled):
    """Adds -ln P of a batch's scored targets to their documents, in float64."""
    if settled is None:
        return
    logprobs, owners = settled
    scored = owners >= 0
    sums = np.bincount(owners[scored], weights=-np.asarray(logprobs)[scored])
    nats[: len(sums)] += sums


def _figures(table) -> dict:
    """The figures of some documents: columns of (nats, tokens, bytes, words)."""
    nats, tokens, num_bytes, words = (float(total) for total in table.sum(axis=1))
    return dict(
        loss=nats / tokens,
        token_perplexity=_exp(nats / tokens),
        bits_per_byte=nats / math.log(2) / num_bytes if num_bytes else math.nan,
        word_perplexity=_exp(nats / words) if words else math.nan,
        tokens=int(tokens),
        bytes=int(num_bytes),
        words=int(words),
        documents=table.shape[1],
    )


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
