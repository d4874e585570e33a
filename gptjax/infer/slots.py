"""Slots: the device's state of all requests, and the jitted programs that change it.

`prefill` reads a chunk of a prompt into one slot, `decode` draws the next token of
every slot, `start_slot` and `stop_slot` change one slot. All shapes are fixed, so each
program compiles once (`prefill` once for each chunk size). The slots are donated.

A slot is idle if its position is the length of the cache. Idle slots are computed too,
but the cache drops writes at that position.
"""

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from gptjax.infer.request import MOST_ALTERNATIVES, SamplingParameters
from gptjax.infer.sampling import (
    History,
    Sampling,
    apply_penalties,
    draw_tokens,
    make_sampling,
)
from gptjax.models import gpt
from gptjax.models.cache import LayerCache

# Idle slots are greedy: no program draws while all other slots are greedy.
IDLE_SAMPLING = make_sampling(SamplingParameters(temperature=0.0))


class Slots(NamedTuple):
    """The state of B requests on the device."""

    cache: tuple  # a `LayerCache` for each layer
    tokens_B: jax.Array  # int32, the tokens that the next step reads
    positions_B: jax.Array  # int32, positions of `tokens_B`; the cache's length if idle
    seeds_B: jax.Array  # uint32
    sampling: Sampling
    history: History


class StepOutput(NamedTuple):
    """The tokens of a step: T in a row, the first `counts_B` of them valid.

    Fields that `Detail` does not require are zeros on the device, None on the host.
    """

    counts_B: jax.Array  # int32
    tokens_BT: jax.Array  # int32
    logprobs_BT: jax.Array  # float32, ln P of the model itself
    top_BTA: jax.Array  # int32, the A most likely tokens, best first
    top_logprobs_BTA: jax.Array  # float32


class Detail(IntEnum):
    """How much a step computes for each token, in order of cost."""

    TOKEN = 0
    LOGPROB = 1
    ALTERNATIVES = 2


class Programs(NamedTuple):
    """The jitted functions of one model, or of a model and its draft (`speculative`).

    prefill: `(params, slots, slot, tokens_T, positions_T, targets_T, score)` reads a
        chunk of a prompt into a slot. Padding comes last, at positions past the
        cache's end. Returns (slots, `StepOutput` (1, T)) with the log-probabilities
        of the targets, which are the next tokens, if `score`, else zeros.
    decode: `(params, slots, allowed_BW, constrained, detail)` draws the next token of
        every slot. If `constrained`, only tokens whose bit in the uint32 words is 1
        can be drawn. Returns (slots, `StepOutput`).
    """

    prefill: Callable
    decode: Callable


def empty_slots(cache: tuple, vocab_size: int, length: int) -> Slots:
    """Idle slots with an empty cache of `length` positions."""
    B = jax.tree.leaves(cache)[0].shape[0]
    return Slots(
        cache=cache,
        tokens_B=jnp.zeros(B, jnp.int32),
        positions_B=jnp.full(B, length, jnp.int32),
        seeds_B=jnp.zeros(B, jnp.uint32),
        sampling=jax.tree.map(lambda value: jnp.full(B, value), IDLE_SAMPLING),
        history=History(
            jnp.zeros((B, vocab_size), bool),
            jnp.zeros((B, vocab_size), jnp.int32),
            jnp.zeros((B, vocab_size), jnp.float32),
        ),
    )


def make_programs(settings: FrozenConfigDict, length: int) -> Programs:
    """The programs of a model whose slots have `length` positions each."""

    @partial(jax.jit, donate_argnums=1)
    def prefill(params, slots, slot, tokens_T, positions_T, targets_T, score):
        cache, hidden_1TD = prefill_chunk(
            settings, params, slots.cache, slot, tokens_T, positions_T
        )
        scored = score_targets(settings, params, hidden_1TD, targets_T, score)
        return slots._replace(cache=cache), scored

    @partial(jax.jit, donate_argnums=1)
    def decode(params, slots, allowed_BW, constrained, detail):
        tokens_B1, positions_B1 = slots.tokens_B[:, None], slots.positions_B[:, None]
        logits_B1V, cache = gpt.decode(
            settings, params, tokens_B1, positions_B1, slots.cache
        )
        logits_BV = apply_penalties(logits_B1V[:, 0], slots.sampling, slots.history)
        logits_BV = constrain_tokens(logits_BV, allowed_BW, constrained)
        next_B1 = draw_tokens(
            logits_BV, slots.seeds_B, slots.positions_B + 1, slots.sampling
        )
        next_B1 = next_B1[:, None]
        ones_B = jnp.ones_like(slots.tokens_B)
        slots = advance_slots(slots._replace(cache=cache), next_B1, ones_B, length)
        return slots, build_output(logits_B1V, next_B1, ones_B, detail)

    return Programs(prefill, decode)


def prefill_chunk(settings, params, cache, slot, tokens_T, positions_T):
    """Writes a chunk to the cache of `slot`; (cache, hidden vectors (1, T, D))."""
    row = tuple(layer.row(slot) for layer in cache)
    hidden_1TD, row = gpt.decode_hidden(
        settings, params, tokens_T[None], positions_T[None], row
    )
    return tuple(layer.whole() for layer in row), hidden_1TD


def score_targets(settings, params, hidden_1TD, targets_T, score) -> StepOutput:
    """Log-probabilities of the targets if `score`, else zeros, without the head."""

    def score_all(hidden_1TD):
        logits_1TV = gpt.bind_ends(settings, params).logits(hidden_1TD)
        counts_1 = jnp.zeros(1, jnp.int32)  # prefill draws no token
        return build_output(logits_1TV, targets_T[None], counts_1, Detail.ALTERNATIVES)

    def zeros(hidden_1TD):
        shapes = jax.eval_shape(score_all, hidden_1TD)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return jax.lax.cond(score, score_all, zeros, hidden_1TD)


def advance_slots(slots: Slots, tokens_BT, counts_B, length: int) -> Slots:
    """The slots after their first `counts_B` tokens; idle slots stay idle."""
    T = tokens_BT.shape[1]
    rows_B1 = jnp.arange(tokens_BT.shape[0])[:, None]
    valid_BT = jnp.arange(T)[None] < counts_B[:, None]
    last_B1 = counts_B[:, None] - 1
    # A row at the last position has ended, which the host may not have read yet.
    positions_B = jnp.minimum(slots.positions_B + counts_B, length)
    return slots._replace(
        tokens_B=jnp.take_along_axis(tokens_BT, last_B1, axis=1)[:, 0],
        positions_B=positions_B,
        history=slots.history._replace(
            counts_BV=slots.history.counts_BV.at[rows_B1, tokens_BT].add(
                valid_BT.astype(jnp.int32)
            )
        ),
    )


@partial(jax.jit, donate_argnums=0)
def start_slot(
    slots: Slots, slot, token, position, seed, sampling, seen_V, bias_V
) -> Slots:
    """Makes a slot decode from `token` at `position`."""
    set_row = lambda all, one: all.at[slot].set(one)
    return Slots(
        cache=slots.cache,
        tokens_B=set_row(slots.tokens_B, token),
        positions_B=set_row(slots.positions_B, position),
        seeds_B=set_row(slots.seeds_B, seed),
        sampling=jax.tree.map(set_row, slots.sampling, sampling),
        history=History(
            set_row(slots.history.seen_BV, seen_V),
            set_row(slots.history.counts_BV, 0),
            set_row(slots.history.bias_BV, bias_V),
        ),
    )


@partial(jax.jit, donate_argnums=0)
def stop_slot(slots: Slots, slot, length) -> Slots:
    """Makes a slot idle."""
    set_row = lambda all, one: all.at[slot].set(one)
    return slots._replace(
        positions_B=set_row(slots.positions_B, length),
        sampling=jax.tree.map(set_row, slots.sampling, IDLE_SAMPLING),
        history=slots.history._replace(bias_BV=set_row(slots.history.bias_BV, 0.0)),
    )


@partial(jax.jit, static_argnums=3)
def read_block(slots: Slots, slot, start, size: int):
    """A copy of `size` positions of a slot's cache, from `start`."""
    read_layer = lambda pages: pages.read_block(slot, start, size)
    return jax.tree.map(read_layer, slots.cache, is_leaf=_is_layer)


@partial(jax.jit, donate_argnums=0)
def write_block(slots: Slots, slot, start, block) -> Slots:
    """Writes a block of `read_block` to a slot's cache."""
    write_layer = lambda pages, part: pages.write_block(slot, start, part)
    cache = jax.tree.map(write_layer, slots.cache, block, is_leaf=_is_layer)
    return slots._replace(cache=cache)


def constrain_tokens(logits_BV, allowed_BW, constrained):
    """Logits with -inf for tokens whose bit is 0, if `constrained`."""
    return jax.lax.cond(
        constrained,
        lambda x: jnp.where(_unpack_bits(allowed_BW, x.shape[-1]), x, -jnp.inf),
        lambda x: x,
        logits_BV,
    )


def build_output(logits_BTV, tokens_BT, counts_B, detail) -> StepOutput:
    """The tokens, with log-probabilities and alternatives if `detail` requires them.

    The log-probability of a token has its own branch, so it is bitwise the same
    whether or not another request needs alternatives.
    """
    B, T = tokens_BT.shape
    A = min(MOST_ALTERNATIVES, logits_BTV.shape[-1])

    def compute_logprobs(logits_BTV):
        total_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
        chosen_BT1 = jnp.take_along_axis(logits_BTV, tokens_BT[..., None], axis=-1)
        chosen_BT = chosen_BT1[..., 0]
        return chosen_BT - total_BT, total_BT

    def list_alternatives(logits_BTV, total_BT):
        top_BTA, ids_BTA = jax.lax.top_k(logits_BTV, A)
        return ids_BTA.astype(jnp.int32), top_BTA - total_BT[..., None]

    logprobs_BT, total_BT = jax.lax.cond(
        detail >= Detail.LOGPROB,
        compute_logprobs,
        lambda _: (jnp.zeros((B, T)), jnp.zeros((B, T))),
        logits_BTV,
    )
    alternatives = jax.lax.cond(
        detail >= Detail.ALTERNATIVES,
        list_alternatives,
        lambda *_: (jnp.zeros((B, T, A), jnp.int32), jnp.zeros((B, T, A))),
        logits_BTV,
        total_BT,
    )
    return StepOutput(counts_B, tokens_BT, logprobs_BT, *alternatives)


def _unpack_bits(packed_BW, size):
    """bool (B, size) from the bits of uint32 words, lowest bit first."""
    bits_BW32 = (packed_BW[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits_BW32.reshape(packed_BW.shape[0], -1)[:, :size].astype(bool)


def _is_layer(cache):
    return isinstance(cache, LayerCache)
