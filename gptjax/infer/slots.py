"""The device's side of the engine: slots of a cache, and the programs on them.

`prefill` reads a chunk of a prompt into one slot, `decode` draws the next token of
every slot, `start_slot` and `stop_slot` change one of them. All have fixed shapes, so
each compiles once (`prefill` once a chunk size), and donate the slots they change.

A slot whose position is the cache's end is idle: it computes as all do, and what it
writes is dropped.
"""

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from gptjax.infer.request import MOST_ALTERNATIVES, SamplingParameters
from gptjax.infer.sampling import History, Sampling, apply_penalties, draw_tokens
from gptjax.models import gpt
from gptjax.models.cache import LayerCache


class Slots(NamedTuple):
    """The state of B requests on the device.

    positions_B: of `tokens_B`; S, the length of the cache: the slot is idle.
    """

    cache: tuple  # of the `LayerCache` of each layer
    tokens_B: jax.Array  # int32, the tokens to be read next
    positions_B: jax.Array  # int32
    seeds_B: jax.Array  # uint32
    sampling: Sampling
    history: History


class StepOutput(NamedTuple):
    """The tokens of a step: T in a row, of which the first `counts_B` are valid.

    The last three are zeros where `Detail` leaves them out, and None where they are
    not copied to the host either.
    """

    counts_B: jax.Array  # int32
    tokens_BT: jax.Array  # int32
    logprobs_BT: jax.Array  # float32, ln P of the model itself
    top_BTA: jax.Array  # int32, the likeliest tokens, best first
    top_logprobs_BTA: jax.Array  # float32


class Detail(IntEnum):
    """What a step computes for each token; all but the first read the logits again."""

    TOKEN = 0
    LOGPROB = 1
    ALTERNATIVES = 2


class Programs(NamedTuple):
    """The compiled functions of one model (or two, see `speculative`).

    prefill: `(params, slots, slot, tokens_T, positions_T, targets_T, score)`: reads
        a chunk of a prompt into a slot. Padding stands at the end, its positions
        past the cache's. Returns (slots, `StepOutput` (1, T)): the log-probabilities
        of the targets (the token after each) where `score`, else zeros.
    decode: `(params, slots, allowed_BW, constrained, detail)`: draws the next token of
        every slot, among those allowed by uint32 bits where `constrained`. Returns
        (slots, `StepOutput`), filled as `detail` says, a `Detail`.
    """

    prefill: Callable
    decode: Callable


def empty_slots(cache: tuple, vocab_size: int, length: int) -> Slots:
    """Idle slots on an empty cache of `length` positions."""
    B = jax.tree.leaves(cache)[0].shape[0]
    return Slots(
        cache=cache,
        tokens_B=jnp.zeros(B, jnp.int32),
        positions_B=jnp.full(B, length, jnp.int32),
        seeds_B=jnp.zeros(B, jnp.uint32),
        sampling=jax.tree.map(lambda value: jnp.full(B, value), _idle_sampling()),
        history=History(
            jnp.zeros((B, vocab_size), bool),
            jnp.zeros((B, vocab_size), jnp.int32),
            jnp.zeros((B, vocab_size), jnp.float32),
        ),
    )


def make_programs(settings: FrozenConfigDict, length: int) -> Programs:
    """The programs of a model whose slots hold `length` tokens each."""

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
    """(the cache with a chunk in `slot`, the chunk's hidden vectors (1, T, D))."""
    row = tuple(layer.row(slot) for layer in cache)
    hidden_1TD, row = gpt.decode_hidden(
        settings, params, tokens_T[None], positions_T[None], row
    )
    return tuple(layer.whole() for layer in row), hidden_1TD


def score_targets(settings, params, hidden_1TD, targets_T, score) -> StepOutput:
    """The targets' log-probabilities, if `score`; else zeros and no head."""

    def score_all(hidden_1TD):
        logits_1TV = gpt.bind_ends(settings, params).logits(hidden_1TD)
        counts_1 = jnp.zeros(1, jnp.int32)  # nothing is drawn
        return build_output(logits_1TV, targets_T[None], counts_1, Detail.ALTERNATIVES)

    def zeros(hidden_1TD):
        shapes = jax.eval_shape(score_all, hidden_1TD)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return jax.lax.cond(score, score_all, zeros, hidden_1TD)


def advance_slots(slots: Slots, tokens_BT, counts_B, length: int) -> Slots:
    """The slots after the first `counts_B` of these tokens; idle ones stay idle."""
    T = tokens_BT.shape[1]
    rows_B1 = jnp.arange(tokens_BT.shape[0])[:, None]
    valid_BT = jnp.arange(T)[None] < counts_B[:, None]
    last_B1 = counts_B[:, None] - 1
    # Past the last position a row has ended, even if the host has not yet seen it.
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
    """The slots with one that goes on from `token` at `position`."""
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
    """The slots with one that is idle."""
    set_row = lambda all, one: all.at[slot].set(one)
    return slots._replace(
        positions_B=set_row(slots.positions_B, length),
        sampling=jax.tree.map(set_row, slots.sampling, _idle_sampling()),
        history=slots.history._replace(bias_BV=set_row(slots.history.bias_BV, 0.0)),
    )


@partial(jax.jit, static_argnums=3)
def read_block(slots: Slots, slot, start, size: int):
    """A copy of `size` positions of a slot's cache, from `start`."""
    read_layer = lambda pages: pages.read_block(slot, start, size)
    return jax.tree.map(read_layer, slots.cache, is_leaf=_is_layer)


@partial(jax.jit, donate_argnums=0)
def write_block(slots: Slots, slot, start, block) -> Slots:
    """The slots with such a copy written into one of them."""
    write_layer = lambda pages, part: pages.write_block(slot, start, part)
    cache = jax.tree.map(write_layer, slots.cache, block, is_leaf=_is_layer)
    return slots._replace(cache=cache)


def constrain_tokens(logits_BV, allowed_BW, constrained):
    """The logits with -inf where the bits forbid a token, if `constrained`."""
    return jax.lax.cond(
        constrained,
        lambda x: jnp.where(_unpack_bits(allowed_BW, x.shape[-1]), x, -jnp.inf),
        lambda x: x,
        logits_BV,
    )


def build_output(logits_BTV, tokens_BT, counts_B, detail) -> StepOutput:
    """The tokens with as much of their log-probabilities as `detail` asks for.

    A token's own is computed by the same program whatever else is asked for, so its
    bits do not depend on whether another request wants alternatives.
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
    """bool (B, size) from bits in uint32 words, the lowest first."""
    bits_BW32 = (packed_BW[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits_BW32.reshape(packed_BW.shape[0], -1)[:, :size].astype(bool)


def _is_layer(cache):
    return isinstance(cache, LayerCache)


def _idle_sampling() -> Sampling:
    """Of an idle slot: greedy, so that nothing is drawn where all others are."""
    greedy = SamplingParameters(temperature=0.0)
    dtype = lambda name: jnp.int32 if name == 'top_k' else jnp.float32
    return Sampling(
        *(jnp.asarray(getattr(greedy, name), dtype(name)) for name in Sampling._fields)
    )
