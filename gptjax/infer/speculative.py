"""Speculative decoding: a small model guesses, the model itself decides.

In a step the draft model draws k tokens, and the target reads them all at once. The
first is kept with probability min(1, p(x) / q(x)), p the target's distribution and q
the draft's, both after penalties, temperature and filters; then the second, and so
on. Where one is refused a token is drawn from max(p - q, 0), renormalised, and where
none is, one more from p. What is kept has the distribution p exactly (Leviathan et
al. 2023, Appendix A; Chen et al. 2023, Theorem 1).

A grammar looks at every token, so its replies take one a step, from p alone.
"""

from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from gptjax.infer.sampling import Sampling, filter_logits, likeliest, penalize
from gptjax.infer.slots import (
    Programs,
    Slots,
    advance,
    constrain_tokens,
    read_chunk,
    score_chunk,
    scores,
)
from gptjax.models import gpt

# Independent draws at one place: of the draft, of whether to keep it, of the rest.
GUESS, KEEP, REST = 0, 1, 2


def programs(
    settings: FrozenConfigDict, draft: FrozenConfigDict, guesses: int, length: int
) -> Programs:
    """`slots.programs` of two models.

    `params` and the slots' cache are pairs: (the target's, the draft's).

    Args:
        settings: of the target.
        draft: of the draft, with the same vocabulary.
        guesses: k, tokens that the draft draws in a step.
        length: tokens in a slot.
    """

    @partial(jax.jit, donate_argnums=1)
    def prefill(params, slots, slot, tokens_T, positions_T, targets_T, score):
        chunk = (slot, tokens_T, positions_T)
        cache, hidden_1TD = read_chunk(settings, params[0], slots.cache[0], *chunk)
        draft_cache, _ = read_chunk(draft, params[1], slots.cache[1], *chunk)
        scored = score_chunk(settings, params[0], hidden_1TD, targets_T, score)
        return slots._replace(cache=(cache, draft_cache)), scored

    @partial(jax.jit, donate_argnums=1)
    def decode(params, slots, allowed_BW, constrained, detail):
        places_BT = slots.places_B[:, None] + jnp.arange(guesses + 1)[None]
        tokens_BT, drafts_BTV, draft_cache = _guess(
            draft, params[1], slots, slots.cache[1], places_BT
        )
        logits_BTV, cache = gpt.decode(
            settings, params[0], tokens_BT, places_BT, slots.cache[0]
        )
        targets_BTV = _distributions(
            logits_BTV, tokens_BT, slots, allowed_BW, constrained
        )
        # A row under a grammar trusts no guess.
        ruled_B = constrained & jnp.any(~allowed_BW != 0, axis=-1)
        drafts_BTV = jnp.where(ruled_B[:, None, None], 0.0, drafts_BTV)
        next_BT, counts_B = accept(
            targets_BTV, drafts_BTV, tokens_BT[:, 1:], slots.seeds_B, places_BT + 1
        )
        slots = advance(
            slots._replace(cache=(cache, draft_cache)), next_BT, counts_B, length
        )
        return slots, scores(logits_BTV, next_BT, counts_B, detail)

    return Programs(prefill, decode)


def _guess(draft, params, slots, cache, places_BT):
    """(tokens read (B, k + 1), the draft's distributions (B, k, V), its cache).

    The last guess is read as well: should it be kept, the cache has it.
    """
    tokens, distributions = [slots.tokens_B], []
    for place_B in places_BT.T:
        logits_B1V, cache = gpt.decode(
            draft, params, tokens[-1][:, None], place_B[:, None], cache
        )
        if len(tokens) == places_BT.shape[1]:
            break
        history = _after(slots.history, tokens[1:])
        q_BV = _distribution(logits_B1V[:, 0], slots.sampling, history)
        distributions.append(q_BV)
        tokens.append(_choose(q_BV, slots.seeds_B, place_B + 1, GUESS))
    return jnp.stack(tokens, axis=1), jnp.stack(distributions, axis=1), cache


def accept(p_BTV, q_BtV, guesses_Bt, seeds_B, places_BT):
    """The tokens that a step ends with: kept guesses, and one drawn anew.

    Args:
        p_BTV: the target's distributions, T = k + 1.
        q_BtV: the draft's; zeros: its guess is not looked at.
        guesses_Bt: int32 (B, k), drawn from them.
        seeds_B: uint32.
        places_BT: int32, the place of each token.

    Returns:
        (tokens int32 (B, T), how many of them are meant, 1 to T).
    """
    at = lambda x_BtV: jnp.take_along_axis(x_BtV, guesses_Bt[..., None], -1)[..., 0]
    p_Bt, q_Bt = at(p_BTV[:, :-1]), at(q_BtV)
    u_Bt = jax.vmap(jax.vmap(_uniform, (None, 0)))(seeds_B, places_BT[:, :-1])
    kept_Bt = (u_Bt * q_Bt < p_Bt) & (q_Bt > 0)
    kept_B = jnp.sum(jnp.cumprod(kept_Bt, axis=1), axis=1)

    # The distribution to draw from after the guesses that are kept; past the last
    # guess there is no draft, so all of p.
    q_BTV = jnp.pad(q_BtV, ((0, 0), (0, 1), (0, 0)))
    pick = lambda x_BTV: jnp.take_along_axis(x_BTV, kept_B[:, None, None], 1)[:, 0]
    p_BV, q_BV = pick(p_BTV), pick(q_BTV)
    rest_BV = jnp.maximum(p_BV - q_BV, 0.0)
    # Where p and q are equal to rounding nothing is left, and a guess was all but
    # certainly kept.
    rest_BV = jnp.where(jnp.sum(rest_BV, -1, keepdims=True) > 0, rest_BV, p_BV)
    place_B = jnp.take_along_axis(places_BT, kept_B[:, None], axis=1)[:, 0]
    rest_B = _choose(rest_BV, seeds_B, place_B, REST)

    tokens_BT = jnp.pad(guesses_Bt, ((0, 0), (0, 1)))
    rows = jnp.arange(len(rest_B))
    return tokens_BT.at[rows, kept_B].set(rest_B), (kept_B + 1).astype(jnp.int32)


def _distributions(logits_BTV, tokens_BT, slots: Slots, allowed_BW, constrained):
    """The target's distributions (B, T, V); a grammar rules the first."""
    distributions = []
    for place in range(tokens_BT.shape[1]):
        history = _after(slots.history, list(tokens_BT[:, 1 : place + 1].T))
        logits_BV = penalize(logits_BTV[:, place], slots.sampling, history)
        if place == 0:
            logits_BV = constrain_tokens(logits_BV, allowed_BW, constrained)
        distributions.append(_probabilities(logits_BV, slots.sampling))
    return jnp.stack(distributions, axis=1)


def _distribution(logits_BV, sampling: Sampling, history):
    return _probabilities(penalize(logits_BV, sampling, history), sampling)


def _probabilities(logits_BV, sampling: Sampling):
    """What `sampling.draw` draws from; all on the likeliest at temperature 0."""
    V = logits_BV.shape[-1]
    likeliest_BV = jax.nn.one_hot(likeliest(logits_BV), V)
    greedy_B = jnp.asarray(sampling.temperature) == 0
    drawn_BV = jax.nn.softmax(filter_logits(logits_BV, sampling), axis=-1)
    return jnp.where(greedy_B[:, None], likeliest_BV, drawn_BV)


def _after(history, tokens: list):
    """The history once these tokens, (B,) each, are in the reply."""
    counts_BV = history.counts_BV
    for token_B in tokens:
        counts_BV = counts_BV.at[jnp.arange(len(token_B)), token_B].add(1)
    return history._replace(counts_BV=counts_BV)


def _key(seed, place, purpose):
    key = jax.random.fold_in(jax.random.key(seed), place)
    return jax.random.fold_in(key, purpose)


def _uniform(seed, place):
    return jax.random.uniform(_key(seed, place, KEEP))


def _choose(weights_BV, seeds_B, places_B, purpose):
    """int32 (B,): a token with a probability in proportion to its weight."""
    row = lambda weights_V, seed, place: jax.random.categorical(
        _key(seed, place, purpose), jnp.log(weights_V)
    )
    return jax.vmap(row)(weights_BV, seeds_B, places_B).astype(jnp.int32)
