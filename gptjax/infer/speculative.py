"""Speculative decoding: a small draft model proposes tokens, the target accepts them.

In a step the draft draws k tokens, and the target reads all of them in one pass. With
the target's distribution p and the draft's q, both after penalties, temperature and
filters, the first token x is accepted with probability min(1, p(x) / q(x)), then the
second, and so on. After the first rejection a token is drawn from the residual
max(p - q, 0), renormalised; if all k are accepted, one more token is drawn from p. The
tokens of the reply have the distribution p exactly (Leviathan et al. 2023, Appendix A;
Chen et al. 2023, Theorem 1).

A grammar needs every token before the next one, so replies with a grammar get one token
a step, drawn from p.
"""

from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from gptjax.infer.sampling import Sampling, apply_penalties, argmax, filter_logits
from gptjax.infer.slots import (
    Programs,
    Slots,
    advance_slots,
    build_output,
    constrain_tokens,
    prefill_chunk,
    score_targets,
)
from gptjax.models import gpt

# The purposes of the independent random draws at one position.
DRAFT, ACCEPT, RESIDUAL = 0, 1, 2


def make_programs(
    settings: FrozenConfigDict, draft: FrozenConfigDict, guesses: int, length: int
) -> Programs:
    """`slots.make_programs` of two models; the draft proposes k = `guesses` tokens.

    `params` and `Slots.cache` are pairs: (target, draft).
    """

    @partial(jax.jit, donate_argnums=1)
    def prefill(params, slots, slot, tokens_T, positions_T, targets_T, score):
        chunk = (slot, tokens_T, positions_T)
        cache, hidden_1TD = prefill_chunk(settings, params[0], slots.cache[0], *chunk)
        draft_cache, _ = prefill_chunk(draft, params[1], slots.cache[1], *chunk)
        scored = score_targets(settings, params[0], hidden_1TD, targets_T, score)
        return slots._replace(cache=(cache, draft_cache)), scored

    @partial(jax.jit, donate_argnums=1)
    def decode(params, slots, allowed_BW, constrained, detail):
        positions_BT = slots.positions_B[:, None] + jnp.arange(guesses + 1)[None]
        tokens_BT, drafts_BTV, draft_cache = _draft_tokens(
            draft, params[1], slots, slots.cache[1], positions_BT
        )
        logits_BTV, cache = gpt.decode(
            settings, params[0], tokens_BT, positions_BT, slots.cache[0]
        )
        targets_BTV = _target_distributions(
            logits_BTV, tokens_BT, slots, allowed_BW, constrained
        )
        # A row with a grammar accepts no draft token.
        constrained_B = constrained & jnp.any(~allowed_BW != 0, axis=-1)
        drafts_BTV = jnp.where(constrained_B[:, None, None], 0.0, drafts_BTV)
        next_BT, counts_B = accept_draft(
            targets_BTV, drafts_BTV, tokens_BT[:, 1:], slots.seeds_B, positions_BT + 1
        )
        slots = advance_slots(
            slots._replace(cache=(cache, draft_cache)), next_BT, counts_B, length
        )
        return slots, build_output(logits_BTV, next_BT, counts_B, detail)

    return Programs(prefill, decode)


def _draft_tokens(draft, params, slots, cache, positions_BT):
    """(tokens (B, k + 1), the draft's distributions (B, k, V), the draft's cache).

    The tokens are the last one of the reply and the k proposed ones. The draft reads
    all of them, as the cache has to hold the last one if it is accepted.
    """
    tokens, distributions = [slots.tokens_B], []
    for position_B in positions_BT.T:
        logits_B1V, cache = gpt.decode(
            draft, params, tokens[-1][:, None], position_B[:, None], cache
        )
        if len(tokens) == positions_BT.shape[1]:
            break
        history = _add_to_history(slots.history, tokens[1:])
        logits_BV = apply_penalties(logits_B1V[:, 0], slots.sampling, history)
        q_BV = _probabilities(logits_BV, slots.sampling)
        distributions.append(q_BV)
        tokens.append(_draw(q_BV, slots.seeds_B, position_B + 1, DRAFT))
    return jnp.stack(tokens, axis=1), jnp.stack(distributions, axis=1), cache


def accept_draft(p_BTV, q_BtV, draft_Bt, seeds_B, positions_BT):
    """The tokens of a step: accepted draft tokens, then one from the residual or p.

    Args:
        p_BTV: the target's distributions, T = k + 1.
        q_BtV: the draft's distributions, t = k; zeros reject the token.
        draft_Bt: int32, tokens drawn from `q_BtV`.
        positions_BT: int32, the position of each token.

    Returns:
        (tokens int32 (B, T), number of valid tokens int32 (B,), from 1 to T).
    """
    at = lambda x_BtV: jnp.take_along_axis(x_BtV, draft_Bt[..., None], -1)[..., 0]
    p_Bt, q_Bt = at(p_BTV[:, :-1]), at(q_BtV)
    uniform = lambda seed, position: jax.random.uniform(_key(seed, position, ACCEPT))
    u_Bt = jax.vmap(jax.vmap(uniform, (None, 0)))(seeds_B, positions_BT[:, :-1])
    accepted_Bt = (u_Bt * q_Bt < p_Bt) & (q_Bt > 0)
    accepted_B = jnp.sum(jnp.cumprod(accepted_Bt, axis=1), axis=1)

    # q is 0 after the last draft token, so the residual there is p.
    q_BTV = jnp.pad(q_BtV, ((0, 0), (0, 1), (0, 0)))
    pick = lambda x_BTV: jnp.take_along_axis(x_BTV, accepted_B[:, None, None], 1)[:, 0]
    p_BV, q_BV = pick(p_BTV), pick(q_BTV)
    residual_BV = jnp.maximum(p_BV - q_BV, 0.0)
    # If p = q up to rounding, the residual is 0 everywhere: draw from p. The draft
    # token was almost certainly accepted.
    residual_BV = jnp.where(
        jnp.sum(residual_BV, -1, keepdims=True) > 0, residual_BV, p_BV
    )
    position_B = jnp.take_along_axis(positions_BT, accepted_B[:, None], axis=1)[:, 0]
    residual_B = _draw(residual_BV, seeds_B, position_B, RESIDUAL)

    tokens_BT = jnp.pad(draft_Bt, ((0, 0), (0, 1)))
    tokens_BT = tokens_BT.at[jnp.arange(len(residual_B)), accepted_B].set(residual_B)
    return tokens_BT, (accepted_B + 1).astype(jnp.int32)


def _target_distributions(logits_BTV, tokens_BT, slots: Slots, allowed_BW, constrained):
    """The target's distributions (B, T, V); the grammar constrains the first token."""
    distributions = []
    for t in range(tokens_BT.shape[1]):
        history = _add_to_history(slots.history, list(tokens_BT[:, 1 : t + 1].T))
        logits_BV = apply_penalties(logits_BTV[:, t], slots.sampling, history)
        if t == 0:
            logits_BV = constrain_tokens(logits_BV, allowed_BW, constrained)
        distributions.append(_probabilities(logits_BV, slots.sampling))
    return jnp.stack(distributions, axis=1)


def _probabilities(logits_BV, sampling: Sampling):
    """The distribution of `draw_tokens`; one-hot at temperature 0."""
    V = logits_BV.shape[-1]
    greedy_BV = jax.nn.one_hot(argmax(logits_BV), V)
    greedy_B = jnp.asarray(sampling.temperature) == 0
    drawn_BV = jax.nn.softmax(filter_logits(logits_BV, sampling), axis=-1)
    return jnp.where(greedy_B[:, None], greedy_BV, drawn_BV)


def _add_to_history(history, tokens: list):
    """The history after these tokens, (B,) each, of the reply."""
    counts_BV = history.counts_BV
    for token_B in tokens:
        counts_BV = counts_BV.at[jnp.arange(len(token_B)), token_B].add(1)
    return history._replace(counts_BV=counts_BV)


def _key(seed, position, purpose):
    key = jax.random.fold_in(jax.random.key(seed), position)
    return jax.random.fold_in(key, purpose)


def _draw(weights_BV, seeds_B, positions_B, purpose):
    """int32 (B,): tokens drawn with probabilities proportional to the weights."""
    draw_row = lambda weights_V, seed, position: jax.random.categorical(
        _key(seed, position, purpose), jnp.log(weights_V)
    )
    return jax.vmap(draw_row)(weights_BV, seeds_B, positions_B).astype(jnp.int32)
