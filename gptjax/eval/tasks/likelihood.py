"""How likely a text is after another one: batched forward passes without sampling.

For a pair of token lists (before, after), with before `BOS a b` and after `c d`, the
model reads `BOS a b c` and `c d` is scored. A pair that is longer than the context
loses its first tokens. If `after` alone is longer, windows move over it:

    context 4, stride 2, before [B a b], after [c d e f g h]
    window 1  [B  a  b  c]              scores c d
    window 2        [b  c  d  e]        scores   e f
    window 3              [d  e  f  g]  scores     g h
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core import console
from gptjax.eval.perplexity import add_scores, pack, score_rows
from gptjax.kernels.cross_entropy import number_of_chunks, strided_chunks
from gptjax.models import gpt
from gptjax.parallel.sharding import put_on_mesh

LOGIT_TOKENS = 1024  # at once: 200 MB of logits with a vocabulary of 50,000


class Scored(NamedTuple):
    """ln P of a text after another one; would greedy decoding write it?"""

    logprob: float
    greedy: bool


def make_score_batch(trained, mesh) -> Callable[[dict], tuple]:
    """A function from a training batch to (ln P of each target, is it the likeliest?).

    It returns (B, T) float32 and (B, T) bool.
    """

    def score_batch(batch):
        batch = put_on_mesh(batch, mesh)
        with jax.set_mesh(mesh):
            return batch_scores(trained.settings, trained.params, batch)

    return score_batch


@partial(jax.jit, static_argnums=(0, 3))
def batch_scores(settings, params, batch, chunk=LOGIT_TOKENS):
    """See `make_score_batch`; the logits of only `chunk` tokens exist at a time."""
    model = gpt.bind(settings, params)
    hidden = model.hidden(batch['inputs'], batch['segments'], batch['positions'])
    targets = batch['targets'].reshape(hidden.shape[:-1])

    def score_chunk(chunk):
        hidden, targets = chunk
        logits = model.logits(hidden)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        likeliest = chosen >= jnp.max(logits, axis=-1)
        return chosen - jax.nn.logsumexp(logits, axis=-1), likeliest

    axis, chunks = targets.ndim - 1, number_of_chunks(targets.shape, chunk)
    chunked = [strided_chunks(x, axis, chunks) for x in (hidden, targets)]
    scores = jax.lax.map(score_chunk, chunked)
    return tuple(jnp.moveaxis(x, 0, -1).reshape(batch['targets'].shape) for x in scores)


def score_pairs(
    score_batch: Callable[[dict], tuple],
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    context: int,
    batch_size: int,
    pad_id: int,
) -> list[Scored]:
    """The likelihood of every `after` given its `before`, in order.

    `before` has at least one token, usually BOS. An empty `after` has probability 1.
    """
    streams = [np.array([*before, *after], np.int32) for before, after in pairs]
    windows = [
        (number, *window)
        for number, (before, after) in enumerate(pairs)
        for window in _windows(len(before), len(after), context)
    ]
    rows = pack(windows, context)
    logprobs, misses = np.zeros(len(pairs)), np.zeros(len(pairs))
    with console.progress_bar('scoring', len(rows), 'rows') as advance:
        for (batch_logprobs, likeliest), owners, num_rows in score_rows(
            score_batch, streams, rows, context, batch_size, pad_id
        ):
            add_scores(logprobs, batch_logprobs, owners)
            add_scores(misses, ~np.asarray(likeliest), owners)
            advance(num_rows)
    return [
        Scored(float(p), not missed) for p, missed in zip(logprobs, misses, strict=True)
    ]


def count_truncated(pairs: Iterable[tuple[Sequence, Sequence]], context: int) -> int:
    """The number of pairs that are longer than the context and lose tokens."""
    return sum(len(before) + len(after) - 1 > context for before, after in pairs)


def _windows(before: int, after: int, context: int):
    """(first input, first scored input, end) of each window; ends are exclusive."""
    inputs, scored = before + after - 1, before - 1
    if after <= context:
        return [(max(0, inputs - context), scored, inputs)] if after else []
    windows = []
    stride = max(context // 2, 1)
    while scored < inputs:
        end = min(scored + stride, inputs)
        windows.append((max(0, end - context), scored, end))
        scored = end
    return windows
