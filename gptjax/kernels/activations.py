"""Activations of the feed-forward layer.

JAX's own gradient of GELU keeps several arrays of the feed-forward's width for the
backward pass; the gradient here keeps only the input, which is needed anyway.
"""

import jax
import jax.numpy as jnp

_SQRT_2_OVER_PI = 0.7978845608028654
_CUBIC = 0.044715


def gelu_reference(x):
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), GPT-2's GELU."""
    return jax.nn.gelu(x, approximate=True)


@jax.custom_vjp
def gelu(x):
    """GPT-2's GELU; see `gelu_reference`."""
    return gelu_reference(x)


def _gelu_forward(x):
    return gelu_reference(x), x


def _gelu_backward(x, gradient):
    x32 = x.astype(jnp.float32)
    tanh = jnp.tanh(_SQRT_2_OVER_PI * (x32 + _CUBIC * x32**3))
    inner = _SQRT_2_OVER_PI * (1.0 + 3.0 * _CUBIC * x32 * x32)
    slope = 0.5 * (1.0 + tanh) + 0.5 * x32 * (1.0 - tanh * tanh) * inner
    return ((gradient * slope).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def gelu_exact(x):
    """x times the normal distribution function of x (Hendrycks and Gimpel 2016)."""
    return jax.nn.gelu(x, approximate=False)


def relu2(x):
    """max(x, 0)^2 (So et al. 2021, Primer)."""
    positive = jnp.maximum(x, 0)
    return positive * positive


def silu_product(gate, up):
    """gate sigmoid(gate) up, the activation of SwiGLU (Shazeer 2020)."""
    return jax.nn.silu(gate) * up


def gelu_product(gate, up):
    """gelu(gate) up, the activation of GEGLU (Shazeer 2020) with GPT-2's GELU."""
    return gelu(gate) * up


# By `model.mlp`: of one projection, or of two, the gate and the other one.
ACTIVATIONS = dict(gelu=gelu, gelu_exact=gelu_exact, relu2=relu2)
GATED = dict(swiglu=silu_product, geglu=gelu_product)
