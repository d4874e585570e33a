"""Text from a prompt, a token at a time, with a cache."""

from collections.abc import Iterator
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from gptjax.errors import UserError
from gptjax.infer.sampling import Sampling, draw
from gptjax.models import gpt
from gptjax.models.cache import empty_cache

# Prompts are padded to a power of two from here, so that few lengths compile.
LEAST_BUCKET = 16

ENDED = -1  # stands for the token of a row that has none any more


def generate(
    settings: FrozenConfigDict,
    params,
    prompts: list[list[int]],
    max_tokens: int,
    sampling: Sampling,
    seeds: list[int] | None = None,
    stop: int | None = None,
) -> Iterator[np.ndarray]:
    """Yields the next token of every prompt until all have ended.

    A row ends with the token `stop`, after `max_tokens`, or where prompt and
    reply fill the model's positions. What it draws depends neither on the other
    rows nor on when they end.

    Args:
        settings: of the model.
        params: of the model.
        prompts: token ids, each with at least one (as a rule BOS).
        max_tokens: at most so many are drawn.
        sampling: how.
        seeds: of the draws, one a prompt; by default 0, 1, ...
        stop: the token that ends a row, itself yielded (EOS).

    Yields:
        int32 (B,), `ENDED` in rows that have ended before.

    Raises:
        UserError: a prompt is empty or longer than the model's positions.
    """
    longest = max(map(len, prompts))
    if min(map(len, prompts)) == 0:
        raise UserError('a prompt has no tokens: begin it with BOS')
    if longest >= settings.context:
        raise UserError(
            f'the prompt has {longest} tokens and model.context={settings.context} '
            f'leaves no place for a reply: shorten it to {settings.context - 1}'
        )
    B = len(prompts)
    seeds = jnp.asarray(range(B) if seeds is None else seeds, jnp.uint32)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    bucket = min(max(LEAST_BUCKET, 1 << (longest - 1).bit_length()), settings.context)
    tokens = np.zeros((B, bucket), np.int32)
    # A padding token's position is past the cache's end: it is never written.
    positions = np.full((B, bucket), settings.context, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
        positions[row, : len(prompt)] = np.arange(len(prompt))

    prefill, advance = _compiled(settings)
    cache = empty_cache(settings, B, settings.context)
    next_B, cache = prefill(params, tokens, positions, lengths, cache, seeds, sampling)
    ended = np.zeros(B, bool)
    for drawn in range(1, max_tokens + 1):
        row = np.where(ended, ENDED, np.asarray(next_B))
        yield row
        ended |= lengths + drawn >= settings.context
        if stop is not None:
            ended |= row == stop
        if ended.all() or drawn == max_tokens:
            return
        places = lengths + drawn - 1  # past the cache's end: never written
        next_B, cache = advance(params, next_B, places, cache, seeds, sampling)


@lru_cache(maxsize=8)
def _compiled(settings):
    """(prefill, advance) of a model; both draw, and both donate the cache."""

    @partial(jax.jit, donate_argnums=4)
    def prefill(params, tokens_BT, positions_BT, lengths_B, cache, seeds_B, sampling):
        model = gpt.bind(settings, params)
        last_B1V, cache = model.decode(tokens_BT, positions_BT, cache, lengths_B - 1)
        return draw(last_B1V[:, 0], seeds_B, lengths_B, sampling), cache

    @partial(jax.jit, donate_argnums=3)
    def advance(params, tokens_B, places_B, cache, seeds_B, sampling):
        model = gpt.bind(settings, params)
        logits_BTV, cache = model.decode(tokens_B[:, None], places_B[:, None], cache)
        return draw(logits_BTV[:, 0], seeds_B, places_B + 1, sampling), cache

    return prefill, advance
