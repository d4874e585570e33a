"""Parameters, dropout, norms, feed-forward and embedding."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.kernels import activations
from gptjax.models.linear import linear


def normal_param(rngs, shape, axes, std):
    """A float32 parameter from N(0, std^2).

    `axes` names the axes for the sharding rules. The caller that jits the creation of
    the parameters places them on devices.
    """
    value = std * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(value, axes=axes)


def constant_param(shape, axes, value):
    return nnx.Param(jnp.full(shape, value, jnp.float32), axes=axes)


def bias_param(has_bias: bool, shape, axes):
    """Zeros, or None without biases."""
    return constant_param(shape, axes, 0.0) if has_bias else None


def dropout(x, rate, key):
    """Zeroes a share `rate` of `x` and scales the rest; no change without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def add_embedding_noise(x_BTD, segments_BT, alpha, key):
    """NEFTune (Jain et al. 2023): x + alpha / sqrt(L D) u, u uniform in [-1, 1].

    L is the number of tokens of the segment (a conversation), so that packing does not
    change the noise. As in the authors' code, padding neither counts nor gets noise.
    """
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    length_BT1 = jnp.sum(same_BTS, axis=-1, dtype=jnp.float32)[..., None]
    size_BT1 = alpha / jnp.sqrt(length_BT1 * x_BTD.shape[-1])
    noise_BTD = jax.random.uniform(key, x_BTD.shape, minval=-1.0, maxval=1.0) * size_BT1
    is_token_BT1 = segments_BT[..., None] > 0
    return x_BTD + jnp.where(is_token_BT1, noise_BTD, 0.0).astype(x_BTD.dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + epsilon) scale (Zhang and Sennrich 2019), in float32.

    With `config.norm_offset` the factor is scale + offset; it is 1 at first.
    """

    def __init__(self, size, axis, config):
        self.scale = constant_param((size,), (axis,), 1.0 - config.norm_offset)
        self.offset = config.norm_offset
        self.epsilon = config.norm_epsilon

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(
            jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon
        )
        factor = self.scale[...]
        if self.offset:
            factor = factor + self.offset
        return (x32 * scale * factor).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(var + epsilon) scale + bias (Ba et al. 2016), in float32."""

    def __init__(self, size, axis, config):
        self.scale = constant_param((size,), (axis,), 1.0)
        self.bias = bias_param(config.bias, (size,), (axis,))
        self.epsilon = config.norm_epsilon

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon) * self.scale[...]
        if self.bias is not None:
            y = y + self.bias[...]
        return y.astype(x.dtype)


def make_norm(config, size=None, axis=None):
    """The norm `config.norm`, over the model's width by default."""
    kind = {'rmsnorm': RMSNorm, 'layernorm': LayerNorm}[config.norm]
    return kind(size or config.width, axis, config)


def add_bias(x, bias):
    return x if bias is None else x + bias[...].astype(x.dtype)


def output_std(config) -> float:
    """For weights that write to the residual stream: GPT-2's factor 1/sqrt(2 L)."""
    return config.init_std / math.sqrt(2 * config.num_layers)


class FeedForward(nnx.Module):
    """down(activation(up x)), or down(activation(gate x) up x), gated."""

    def __init__(self, config, *, rngs):
        D, F = config.width, config.mlp_width
        up_axes = ('embed', 'mlp')
        self.config = config
        self.up = normal_param(rngs, (D, F), up_axes, config.init_std)
        if config.mlp in activations.GATED:
            self.gate = normal_param(rngs, (D, F), up_axes, config.init_std)
        self.down = normal_param(rngs, (F, D), ('mlp', 'embed'), output_std(config))
        self.up_bias = bias_param(config.bias, (F,), ('mlp',))
        self.down_bias = bias_param(config.bias, (D,), (None,))

    def __call__(self, x):
        """x: (..., D) in the compute dtype; returns the same shape."""
        kind = self.config.mlp
        if kind in activations.GATED:
            up, gate = linear(x, self.up, self.gate)  # (..., F) each
            middle = activations.GATED[kind](gate, add_bias(up, self.up_bias))
        else:
            up = add_bias(linear(x, self.up), self.up_bias)
            middle = activations.ACTIVATIONS[kind](up)
        return add_bias(linear(middle, self.down), self.down_bias)


class Embedding(nnx.Module):
    """Token vectors, plus learned position vectors for config.position='learned'."""

    def __init__(self, config, *, rngs):
        V, D = config.vocab_size, config.width
        # A tied embedding is also the head and needs the head's standard deviation.
        std = head_std(config) if config.tie_embeddings else config.embedding_std
        self.token = normal_param(rngs, (V, D), ('vocab', 'embed'), std)
        learned = config.position == 'learned'
        shape, axes = (config.context, D), (None, 'embed')
        self.position = normal_param(rngs, shape, axes, std) if learned else None
        self.scale = config.embedding_scale

    def __call__(self, tokens_BT, positions_BT, dtype):
        """(B, T, D) in `dtype`."""
        x = jnp.take(self.token[...], tokens_BT, axis=0)
        if self.position is not None:
            # Padding may have positions past the last one.
            position = jnp.take(self.position[...], positions_BT, axis=0, mode='clip')
            x = x + position
        x = x.astype(dtype)
        return x if self.scale == 1.0 else x * jnp.asarray(self.scale, dtype)


def head_std(config) -> float:
    """For weights of the head: the first loss is within 1% of ln V.

    Hidden vectors are normalised, so logits have the variance D std^2 = 1/16, and the
    first loss is about ln V + 1/32.
    """
    return 0.25 / math.sqrt(config.width)
