"""Drawing the next token."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax.errors import UserError


class Sampling(NamedTuple):
    """How each row of a batch draws; every field is a scalar or (B,).

    temperature: divides the logits; 0: the likeliest token.
    top_k: tokens that stay, the likeliest; 0: all.
    top_p: the likeliest stay until their probabilities add up to it; 1: all.
    min_p: those stay with this share of the likeliest's probability; 0: all.
    """

    temperature: jax.Array | float = 1.0
    top_k: jax.Array | int = 0
    top_p: jax.Array | float = 1.0
    min_p: jax.Array | float = 0.0


def check_sampling(sampling: Sampling, fields: str = 'sample.') -> None:
    """Refuses what cannot be drawn by, naming `fields` and the field.

    Raises:
        UserError: a field out of its range.
    """
    rules = (
        ('temperature', sampling.temperature >= 0, '0 or more'),
        ('top_k', sampling.top_k >= 0, '0 or more'),
        ('top_p', 0 < sampling.top_p <= 1, 'above 0, at most 1'),
        ('min_p', 0 <= sampling.min_p <= 1, 'from 0 to 1'),
    )
    for name, fine, fix in rules:
        if not fine:
            value = getattr(sampling, name)
            raise UserError(f'{fields}{name}={value}: use a number {fix}')


def filter_logits(logits_BV, sampling: Sampling):
    """Logits over temperature, with -inf where a token may not be drawn.

    The filters apply in the order temperature, top-k, top-p, min-p, each to
    what the one before left, renormalised. The likeliest token always stays.
    """
    B, V = logits_BV.shape

    def column(x, dtype):
        return jnp.broadcast_to(jnp.asarray(x, dtype), (B,))[:, None]

    temperature = column(sampling.temperature, jnp.float32)
    # From the likeliest down: at no temperature does the division overflow upwards.
    logits = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    logits = logits / jnp.where(temperature > 0, temperature, 1.0)

    # Work in falling order, where each filter keeps a first part of the row.
    order = jnp.argsort(-logits, axis=-1)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    top_k = column(sampling.top_k, jnp.int32)
    ranks = jnp.arange(V)[None]
    ranked = jnp.where((top_k > 0) & (ranks >= top_k), -jnp.inf, ranked)

    probabilities = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    top_p = column(sampling.top_p, jnp.float32)
    # In float32 the sum can reach one before the row ends.
    beyond = (before >= top_p) & (top_p < 1)
    ranked = jnp.where(beyond & (ranks > 0), -jnp.inf, ranked)

    # Sharing a normaliser, probabilities compare as logits do.
    lowest = ranked[:, :1] + jnp.log(column(sampling.min_p, jnp.float32))
    ranked = jnp.where((ranked < lowest) & (ranks > 0), -jnp.inf, ranked)

    places = jnp.argsort(order, axis=-1)
    return jnp.take_along_axis(ranked, places, axis=-1)


def draw(logits_BV, seeds_B, positions_B, sampling: Sampling):
    """A token for each row, int32 (B,).

    A row's draw is a function of its own logits, seed and position alone: a
    reply does not depend on what else is in the batch.
    """

    def row(logits_V, seed, position):
        key = jax.random.fold_in(jax.random.key(seed), position)
        return jax.random.categorical(key, logits_V)

    filtered = filter_logits(logits_BV, sampling)
    drawn = jax.vmap(row)(filtered, seeds_B, positions_B)
    likeliest = jnp.argmax(logits_BV, axis=-1)
    greedy = jnp.broadcast_to(jnp.asarray(sampling.temperature) == 0, drawn.shape)
    return jnp.where(greedy, likeliest, drawn).astype(jnp.int32)
