"""Log-probabilities of targets under a model, and the entropy of its distribution."""

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from gptjax.kernels.cross_entropy import (
    head_logits,
    number_of_chunks,
    strided_chunks,
)
from gptjax.models import gpt


def token_logprobs(
    settings: FrozenConfigDict, params, batch, temperature=1.0, key=None, chunk=0
):
    """ln p[target] and the entropy of p, with p = softmax(logits / temperature).

    The temperature is part of the policy: use the sampler's for policy, old policy and
    reference. The model's soft cap on logits is applied before it.

    Args:
        params: without value or reward heads.
        batch: `inputs`, `targets`, `segments`, `positions`: int32 (B, T).
        key: for dropout; None means no dropout, as in the sampler.
        chunk: number of tokens whose logits are in memory at a time, rounded to a
            divisor of B T; 0 means all.

    Returns:
        (logprobs, entropy), both float32 (B, T); padding has arbitrary finite values.
    """
    model = gpt.bind(settings, params)
    hidden = model.hidden(batch['inputs'], batch['segments'], batch['positions'], key)
    return hidden_logprobs(model, hidden, batch['targets'], temperature, chunk)


def hidden_logprobs(model: gpt.GPT, hidden, targets_BT, temperature=1.0, chunk=0):
    """`token_logprobs` from hidden vectors, (B, T, D) or (B T, D), and int32 targets.

    For callers that also compute something else from the hidden vectors.
    """
    targets = targets_BT.reshape(hidden.shape[:-1])
    head_DV = model.head_DV(hidden.dtype)
    cap = model.config.logit_softcap

    def of_tokens(part):
        hidden, targets = part
        logits = head_logits(hidden, head_DV)
        logits = cap * jnp.tanh(logits / cap) if cap else logits
        return logits_logprobs(logits / temperature, targets)

    chunks = number_of_chunks(targets.shape, chunk)
    if chunks == 1:
        both = of_tokens((hidden, targets))
    else:
        axis = targets.ndim - 1
        parts = jax.tree.map(
            lambda x: strided_chunks(x, axis, chunks), (hidden, targets)
        )
        # The backward pass recomputes the logits of a chunk instead of keeping them.
        both = jax.lax.map(jax.checkpoint(of_tokens), parts)
        both = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), both)
    return jax.tree.map(lambda x: x.reshape(targets_BT.shape), both)


def logits_logprobs(logits, targets):
    """(ln p[target], entropy) of p = softmax(logits), float32 (...).

    Args:
        logits: float32 (..., V), already divided by the temperature.
        targets: int32 (...).
    """
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32))
    chosen = jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
