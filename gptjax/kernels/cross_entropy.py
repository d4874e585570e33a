"""Cross-entropy of a linear head, without all logits of a batch in memory."""

import math
from functools import partial

import jax
import jax.numpy as jnp


@jax.custom_vjp
def head_logits(hidden, head_DV):
    """float32 logits (..., V) of hidden vectors (..., D) in the compute dtype.

    Sums are float32: rounding to bfloat16 would change logits by up to 2^-9 of their
    size before the softmax. Gradients are in the compute dtype, as in other layers.
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

    With soft-capped logits z = h W and p = softmax(z),

        plain = -log p[target]
        loss  = (1 - s) plain - s / V sum_v log p[v] + c (log sum_v exp z[v])^2

    where s is `label_smoothing` and c is `z_loss` (PaLM, section 5).

    Args:
        hidden: (..., D), in the compute dtype like the head.
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
    """`cross_entropy_reference` with the logits of `chunk` tokens in memory at a time.

    The forward pass computes the gradient of a chunk while its logits are in memory; a
    backward pass would have to keep them or compute them again. The plain loss, the
    second result, is a metric without a gradient.

    A chunk has every n-th token of the last axis of `targets`, so that an axis that is
    split over devices stays split. `chunk` is rounded to a divisor; 0 means one chunk.
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
    """The smallest divisor of the last axis that gives at most `chunk` tokens each."""
    last = shape[-1]
    wanted = min(-(-math.prod(shape) // chunk), last) if chunk else 1
    return next(n for n in range(wanted, last + 1) if last % n == 0)


def strided_chunks(x, axis, num_chunks):
    """(..., n C, ...) to (C, ..., n, ...): chunk c has the indices c, c + C, ...

    Two chunks of four tokens a b c d → [a c] [b d]. If the axis is split over devices,
    each chunk has tokens of every device.
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
    # The empty array passes the head's dtype to the backward pass.
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
