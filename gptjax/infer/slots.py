"""The device's side of the engine: slots of a cache, and three programs on them.

`prefill` reads a chunk of a prompt into one slot, `decode` draws the next token of
every slot, `admit` tells a slot what it decodes. All have fixed shapes, so each
compiles once (`prefill` once a chunk size), and donate the slots they change.

A slot whose place is the cache's end is idle: it computes as all do, and what it
writes is dropped.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from gptjax.infer.request import MOST_ALTERNATIVES, Parameters
from gptjax.infer.sampling import History, Sampling, draw, penalize
from gptjax.models import gpt


class Slots(NamedTuple):
    """What the device knows of B requests.

    cache: a layer's each, of `gptjax.models.cache`.
    tokens_B: int32, read next.
    places_B: int32, where they stand; S: the slot is idle.
    seeds_B: uint32.
    sampling: of each request.
    history: of each request.
    """

    cache: tuple
    tokens_B: jax.Array
    places_B: jax.Array
    seeds_B: jax.Array
    sampling: Sampling
    history: History


class Drawn(NamedTuple):
    """What one decode step gave.

    tokens_B: int32.
    logprobs_B: float32, ln P of the model itself.
    top_BA: int32, the likeliest tokens, best first.
    top_logprobs_BA: float32; both are zeros in steps that nobody asked it of.
    """

    tokens_B: jax.Array
    logprobs_B: jax.Array
    top_BA: jax.Array
    top_logprobs_BA: jax.Array


class Programs(NamedTuple):
    """The compiled functions of one model; see `programs`."""

    prefill: callable
    decode: callable
    admit: callable
    park: callable
    read_block: callable
    write_block: callable


def empty_slots(cache: tuple, vocab_size: int, length: int) -> Slots:
    """Idle slots on an empty cache of `length` places."""
    B = jax.tree.leaves(cache)[0].shape[0]
    default = Parameters()
    fill = lambda name: jnp.full(B, getattr(default, name), _dtype(name))
    return Slots(
        cache=cache,
        tokens_B=jnp.zeros(B, jnp.int32),
        places_B=jnp.full(B, length, jnp.int32),
        seeds_B=jnp.zeros(B, jnp.uint32),
        sampling=Sampling(*(fill(name) for name in Sampling._fields)),
        history=History(
            jnp.zeros((B, vocab_size), bool),
            jnp.zeros((B, vocab_size), jnp.int32),
            jnp.zeros((B, vocab_size), jnp.float32),
        ),
    )


def programs(settings: FrozenConfigDict, length: int) -> Programs:
    """The programs of a model whose slots hold `length` tokens each."""

    @partial(jax.jit, donate_argnums=1)
    def prefill(params, slots, slot, tokens_T, positions_T, targets_T, score):
        """Reads a chunk of a prompt into a slot.

        Args:
            params: of `gpt.unstack_layers`.
            slots: donated.
            slot: int32.
            tokens_T: int32, padded at the end.
            positions_T: int32; `length`: padding.
            targets_T: int32, the token after each.
            score: bool, whether the targets' log-probabilities are wanted.

        Returns:
            (slots, `Drawn` of T rows: the targets, zeros where not wanted).
        """
        row = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, slot, 1), slots.cache
        )
        hidden_1TD, row = gpt.decode_hidden(
            settings, params, tokens_T[None], positions_T[None], row
        )
        cache = jax.tree.map(
            lambda all, one: jax.lax.dynamic_update_slice_in_dim(all, one, slot, 0),
            slots.cache,
            row,
        )

        def scores(hidden_TD):
            logits_TV = gpt.bind_ends(settings, params).logits(hidden_TD)
            return _scores(logits_TV, targets_T, True)

        def nothing(hidden_TD):
            return jax.tree.map(jnp.zeros_like, jax.eval_shape(scores, hidden_TD))

        scored = jax.lax.cond(score, scores, nothing, hidden_1TD[0])
        return slots._replace(cache=cache), scored

    @partial(jax.jit, donate_argnums=1)
    def decode(params, slots, allowed_BW, constrained, alternatives):
        """Draws the next token of every slot.

        Args:
            params: of `gpt.unstack_layers`.
            slots: donated.
            allowed_BW: uint32 bits, tokens that may be drawn.
            constrained: bool, whether that forbids any.
            alternatives: bool, whether the likeliest tokens are asked for.

        Returns:
            (slots, `Drawn`).
        """
        logits_BTV, cache = gpt.decode(
            settings,
            params,
            slots.tokens_B[:, None],
            slots.places_B[:, None],
            slots.cache,
        )
        logits_BV = logits_BTV[:, 0]
        places_B = jnp.minimum(slots.places_B + 1, length)
        ruled_BV = penalize(logits_BV, slots.sampling, slots.history)
        ruled_BV = jax.lax.cond(
            constrained,
            lambda x: jnp.where(_bits(allowed_BW, x.shape[-1]), x, -jnp.inf),
            lambda x: x,
            ruled_BV,
        )
        tokens_B = draw(ruled_BV, slots.seeds_B, places_B, slots.sampling)
        rows = jnp.arange(tokens_B.shape[0])
        history = slots.history._replace(
            counts_BV=slots.history.counts_BV.at[rows, tokens_B].add(1)
        )
        idle_B = slots.places_B >= length
        slots = slots._replace(
            cache=cache,
            tokens_B=tokens_B,
            places_B=jnp.where(idle_B, length, places_B),
            history=history,
        )
        return slots, _scores(logits_BV, tokens_B, alternatives)

    @partial(jax.jit, donate_argnums=0)
    def admit(slots, slot, token, place, seed, sampling, seen_V, bias_V):
        """The slots with one that goes on from `token` at `place`."""
        put = lambda all, one: all.at[slot].set(one)
        return Slots(
            cache=slots.cache,
            tokens_B=put(slots.tokens_B, token),
            places_B=put(slots.places_B, place),
            seeds_B=put(slots.seeds_B, seed),
            sampling=jax.tree.map(put, slots.sampling, sampling),
            history=History(
                put(slots.history.seen_BV, seen_V),
                put(slots.history.counts_BV, 0),
                put(slots.history.bias_BV, bias_V),
            ),
        )

    @partial(jax.jit, donate_argnums=0)
    def park(slots, slot):
        """The slots with one that is idle, its parameters the default ones."""
        default = Sampling(*(getattr(Parameters(), n) for n in Sampling._fields))
        put = lambda all, one: all.at[slot].set(one)
        return slots._replace(
            places_B=put(slots.places_B, length),
            sampling=jax.tree.map(put, slots.sampling, default),
            history=slots.history._replace(bias_BV=put(slots.history.bias_BV, 0.0)),
        )

    @partial(jax.jit, static_argnums=3)
    def read_block(slots, slot, start, size):
        """A copy of `size` places of a slot's cache, from `start`."""
        return jax.tree.map(
            lambda x: jax.lax.dynamic_slice(
                x, (slot, start, *[0] * (x.ndim - 2)), (1, size, *x.shape[2:])
            ),
            slots.cache,
        )

    @partial(jax.jit, donate_argnums=0)
    def write_block(slots, slot, start, block):
        """The slots with such a copy in another's place."""
        cache = jax.tree.map(
            lambda x, part: jax.lax.dynamic_update_slice(
                x, part, (slot, start, *[0] * (x.ndim - 2))
            ),
            slots.cache,
            block,
        )
        return slots._replace(cache=cache)

    return Programs(prefill, decode, admit, park, read_block, write_block)


def _scores(logits_BV, tokens_B, alternatives) -> Drawn:
    """The log-probabilities of tokens, and of the likeliest if they are wanted."""
    total_B = jax.nn.logsumexp(logits_BV, axis=-1)
    chosen_B = jnp.take_along_axis(logits_BV, tokens_B[:, None], axis=-1)[:, 0]
    A = min(MOST_ALTERNATIVES, logits_BV.shape[-1])

    def likeliest(logits_BV):
        top_BA, ids_BA = jax.lax.top_k(logits_BV, A)
        return ids_BA.astype(jnp.int32), top_BA - total_B[:, None]

    def nothing(logits_BV):
        B = logits_BV.shape[0]
        return jnp.zeros((B, A), jnp.int32), jnp.zeros((B, A), jnp.float32)

    top_BA, top_logprobs_BA = jax.lax.cond(alternatives, likeliest, nothing, logits_BV)
    return Drawn(tokens_B, chosen_B - total_B, top_BA, top_logprobs_BA)


def _bits(packed_BW, size):
    """bool (B, size) of bits in uint32 words, the lowest first."""
    bits_BW32 = (packed_BW[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits_BW32.reshape(packed_BW.shape[0], -1)[:, :size].astype(bool)


def _dtype(name):
    return jnp.int32 if name == 'top_k' else jnp.float32
