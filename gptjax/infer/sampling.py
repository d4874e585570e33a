"""Draws the next token of every row, each with its own parameters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.infer.request import SamplingParameters


class Sampling(NamedTuple):
    """The fields of `SamplingParameters` as arrays: (B,), or a scalar for all rows."""

    temperature: jax.Array | float = 1.0
    top_k: jax.Array | int = 0
    top_p: jax.Array | float = 1.0
    min_p: jax.Array | float = 0.0
    repetition_penalty: jax.Array | float = 1.0
    presence_penalty: jax.Array | float = 0.0
    frequency_penalty: jax.Array | float = 0.0


class History(NamedTuple):
    """The tokens of each row's prompt and reply, for the penalties, and its biases."""

    seen_BV: jax.Array  # bool, whether the prompt has the token
    counts_BV: jax.Array  # int32, how often the reply has the token
    bias_BV: jax.Array  # float32, added to the logits


def make_sampling(parameters: SamplingParameters) -> Sampling:
    """The fields of one request as numpy scalars."""
    dtype = lambda name: np.int32 if name == 'top_k' else np.float32
    return Sampling(
        *(dtype(name)(getattr(parameters, name)) for name in Sampling._fields)
    )


def apply_penalties(logits_BV, sampling: Sampling, history: History):
    """Logits after the repetition, presence and frequency penalties and the bias."""

    def changed(logits_BV):
        repetition, presence, frequency = (
            _as_column(penalty, logits_BV)
            for penalty in (
                sampling.repetition_penalty,
                sampling.presence_penalty,
                sampling.frequency_penalty,
            )
        )
        replied_BV = history.counts_BV > 0
        repeated_BV = jnp.where(
            logits_BV > 0, logits_BV / repetition, logits_BV * repetition
        )
        logits_BV = jnp.where(replied_BV | history.seen_BV, repeated_BV, logits_BV)
        return (
            logits_BV
            - presence * replied_BV
            - frequency * history.counts_BV
            + history.bias_BV
        )

    # Dividing by 1 and adding 0 are exact, so a row without penalties gets the same
    # logits in both branches.
    needed = (
        jnp.any(jnp.asarray(sampling.repetition_penalty) != 1)
        | jnp.any(jnp.asarray(sampling.presence_penalty) != 0)
        | jnp.any(jnp.asarray(sampling.frequency_penalty) != 0)
        | jnp.any(history.bias_BV != 0)
    )
    return jax.lax.cond(needed, changed, lambda logits_BV: logits_BV, logits_BV)


def filter_logits(logits_BV, sampling: Sampling):
    """Logits divided by the temperature, with -inf for tokens that are filtered out.

    The order is temperature, top-k, top-p, min-p; each filter renormalises what the
    one before it kept. The most likely token is always kept. Equally likely tokens
    are kept or filtered out together.

        probabilities 0.5 0.3 0.15 0.05, top_p=0.7 → 0.625 0.375 0 0
    """
    temperature = _as_column(sampling.temperature, logits_BV)
    # The largest logit becomes 0, so that a small temperature cannot overflow to inf.
    logits = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    logits = logits / jnp.where(temperature > 0, temperature, 1.0)
    top_k = _as_column(sampling.top_k, logits_BV)
    top_p = _as_column(sampling.top_p, logits_BV)
    min_p = _as_column(sampling.min_p, logits_BV)

    def filtered(logits):
        kept = jnp.where(top_k > 0, _find_threshold(logits, None, top_k), -jnp.inf)
        logits = jnp.where(logits >= kept, logits, -jnp.inf)
        probabilities = jax.nn.softmax(logits, axis=-1)
        kept = jnp.where(
            top_p < 1, _find_threshold(logits, probabilities, top_p), -jnp.inf
        )
        logits = jnp.where(logits >= kept, logits, -jnp.inf)
        # The largest logit is 0, so log(p / largest p) is the logit.
        return jnp.where(logits >= jnp.log(min_p), logits, -jnp.inf)

    needed = jnp.any((top_k > 0) | (top_p < 1) | (min_p > 0))
    return jax.lax.cond(needed, filtered, lambda logits: logits, logits)


def draw_tokens(logits_BV, seeds_B, positions_B, sampling: Sampling):
    """A token for each row, int32 (B,), from logits after penalties.

    The draw depends only on the row's logits, seed and position (of the new token),
    so a reply does not depend on the other rows.
    """
    best_B = argmax(logits_BV)
    greedy = jnp.broadcast_to(jnp.asarray(sampling.temperature) == 0, best_B.shape)

    def drawn(logits_BV):
        def row(logits_V, seed, position):
            key = jax.random.fold_in(jax.random.key(seed), position)
            return jax.random.categorical(key, logits_V).astype(jnp.int32)

        return jax.vmap(row)(filter_logits(logits_BV, sampling), seeds_B, positions_B)

    chosen = jax.lax.cond(jnp.all(greedy), lambda logits_BV: best_B, drawn, logits_BV)
    return jnp.where(greedy, best_B, chosen)


def argmax(logits_BV):
    """The index of the first largest logit, int32 (B,).

    XLA for CPU vectorises these two reductions, but not the single reduction over
    (value, index) pairs of `jnp.argmax`.
    """
    V = logits_BV.shape[-1]
    largest_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    tokens_BV = jax.lax.broadcasted_iota(jnp.int32, logits_BV.shape, 1)
    first_B = jnp.min(jnp.where(logits_BV == largest_B1, tokens_BV, V), axis=-1)
    return jnp.minimum(first_B, V - 1)  # a valid token even if all logits are NaN


def _as_column(value, logits_BV):
    """A scalar or (B,) as float32 (B, 1)."""
    B = logits_BV.shape[0]
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), (B,))[:, None]


def _find_threshold(logits_BV, weights_BV, target_B1):
    """(B, 1): the largest logit such that logits from it upwards weigh >= the target.

    `weights_BV` None: every token weighs 1. If the total weight is below the target,
    the result is the smallest logit. Logits 3 2 1 0 with target 2 give 2.

    A binary search over the 32 bits of a float takes a tenth of the time of a sort.
    """
    keys_BV = _to_sortable_bits(logits_BV)
    weights_BV = jnp.ones_like(logits_BV) if weights_BV is None else weights_BV

    def try_bit(i, threshold_B1):
        tried_B1 = threshold_B1 | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        above_BV = jnp.where(keys_BV >= tried_B1, weights_BV, 0.0)
        enough_B1 = jnp.sum(above_BV, axis=-1, keepdims=True) >= target_B1
        return jnp.where(enough_B1, tried_B1, threshold_B1)

    B = logits_BV.shape[0]
    threshold_B1 = jax.lax.fori_loop(0, 32, try_bit, jnp.zeros((B, 1), jnp.uint32))
    kept_BV = keys_BV >= threshold_B1
    return jnp.min(jnp.where(kept_BV, logits_BV, jnp.inf), axis=-1, keepdims=True)


def _to_sortable_bits(x):
    """uint32 in the same order as the float32 `x`."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign, ~bits, bits | sign)
