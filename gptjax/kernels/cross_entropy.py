"""Cross-entropy of a linear head that never holds all logits of a batch."""

import math
from functools import partial

import jax
import jax.numpy as jnp


@jax.custom_vjp
def head_logits(hidden, head_DV):
    """float32 logits (..., V) of hidden vectors (..., D) in the compute dtype.

    The sums stay as they are added up, in float32: rounded to bfloat16 they
    would be off by 2^-9 of a logit before the softmax. Gradients are multiplied in
    the compute dtype, as those of every other layer.
    """
    return jnp.einsum(
        '...D,DV->...V', hidden, head_DV, preferred_element_type=jnp.float32
    )


def _head_logits_forward(hidden, head_DV):
    return head_logits(hidden, head_DV), (hidden, head_DV)


def _head_logits_backward(residuals, gradient):
    hidden, head_DV = residuals
    _, pull = jax.vjp(lambda h, w: jnp.einsum('...D,DV->...V', h, w), hidden, head_DV)
    return pull(gradient.astype(hidden.dtype))


head_logits.defvjp(_head_logits_forward, _head_logits_backward)


def cross_entropy_reference(
    hidden, head_DV, targets, weights, *, softcap=0.0, z_loss=0.0, label_smoothing=0.0
):
    """Weighted sums over tokens of the training loss and of the plain loss.

    With logits z = h W (soft-capped) and p their softmax,

        plain = -log p[target]
        loss  = (1 - s) plain - s / V sum_v log p[v] + c (log sum_v exp z[v])^2

    where s is `label_smoothing` and c is `z_loss` (PaLM, section 5).

    Args:
        hidden: (..., D) in the compute dtype, as the head.
        targets: int32 (...).
        weights: float32 (...).

    Returns:
        (sum of weight x loss, sum of weight x plain), float32.
    """
    logits = head_logits(hidden, head_DV)
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    log_partition = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    plain = log_partition - chosen
    loss = plain
    if label_smoothing:
        mean_plain = log_partition - jnp.mean(logits, axis=-1)
        loss = (1.0 - label_smoothing) * plain + label_smoothing * mean_plain
    if z_loss:
        loss = loss + z_loss * log_partition**2
    return jnp.sum(weights * loss), jnp.sum(weights * plain)


def cross_entropy(hidden, head_DV, targets, weights, *, chunk=0, **options):
    """As `cross_entropy_reference`, `chunk` tokens of logits alive at a time.

    The gradient is computed in the forward pass, chunk by chunk, while the
    chunk's logits are at hand: a backward pass would have to keep them or
    compute them again. The second result, the plain loss, is a report: no
    gradient flows through it.

    Tokens are taken along the last axis of `targets`, every n-th together, so that an
    axis that is split over devices stays split. `chunk` is rounded to a divisor; with
    0 all are taken at once.
    """
    axis = targets.ndim - 1
    num_chunks = number_of_chunks(targets.shape, chunk)
    if num_chunks == 1:
        total, plain = cross_entropy_reference(
            hidden, head_DV, targets, weights, **options
        )
        return total, jax.lax.stop_gradient(plain)
    chunks = jax.tree.map(
        lambda x: strided_chunks(x, axis, num_chunks), (hidden, targets, weights)
    )
    options = tuple(sorted(options.items()))
    return _chunked(chunks[0], head_DV, chunks[1], chunks[2], options)


def number_of_chunks(shape, chunk) -> int:
    """The least divisor of the last axis that makes chunks no larger than asked."""
    last = shape[-1]
    wanted = min(-(-math.prod(shape) // chunk), last) if chunk else 1
    return next(n for n in range(wanted, last + 1) if last % n == 0)


def strided_chunks(x, axis, num_chunks):
    """(..., n C, ...) to (C, ..., n, ...): chunk c has the indices c, c + C, ...

    Every chunk then has indices of every shard of an axis that is split over devices.
    """
    split = x.reshape(*x.shape[:axis], -1, num_chunks, *x.shape[axis + 1 :])
    return jnp.moveaxis(split, axis + 1, 0)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunked(hidden, head_DV, targets, weights, options):
    def add(sums, chunk):
        h, y, w = chunk
        both = cross_entropy_reference(h, head_DV, y, w, **dict(options))
        return jax.tree.map(jnp.add, sums, both), None

    zero = jnp.zeros((), jnp.float32)
    return jax.lax.scan(add, (zero, zero), (hidden, targets, weights))[0]


def _chunked_forward(hidden, head_DV, targets, weights, options):
    def add(carry, chunk):
        sums, head_gradient = carry
        h, y, w = chunk
        loss = lambda h, head: cross_entropy_reference(h, head, y, w, **dict(options))
        total, pull, plain = jax.vjp(loss, h, head_DV, has_aux=True)
        h_gradient, head_part = pull(jnp.ones((), jnp.float32))
        sums = (sums[0] + total, sums[1] + plain)
        return (sums, head_gradient + head_part.astype(jnp.float32)), h_gradient

    zero = jnp.zeros((), jnp.float32)
    start = ((zero, zero), jnp.zeros(head_DV.shape, jnp.float32))
    (sums, head_gradient), hidden_gradient = jax.lax.scan(
        add, start, (hidden, targets, weights)
    )
    # An empty array carries the head's dtype to the backward pass.
    return sums, (hidden_gradient, head_gradient, jnp.zeros((0,), head_DV.dtype))


def _chunked_backward(options, residuals, gradients):
    hidden_gradient, head_gradient, head_dtype = residuals
    scale = gradients[0]
    return (
        (hidden_gradient * scale).astype(hidden_gradient.dtype),
        (head_gradient * scale).astype(head_dtype.dtype),
        None,
        None,
    )


_chunked.defvjp(_chunked_forward, _chunked_backward)
