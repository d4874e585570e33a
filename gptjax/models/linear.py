"""Linear maps, and transposed weights for decoding one row at a time on a CPU."""

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

# The number of input axes of one layer's weights; the other axes are outputs.
INPUT_AXES = {
    'query': 1,  # D N H
    'key': 1,
    'value': 1,
    'out': 2,  # N H D
    'up': 1,  # D F
    'gate': 1,
    'down': 1,  # F D
    'kernel': 1,  # D V, the head
}

# Weights of the same input, which `transpose_params` joins to one matrix.
APPLIED_TOGETHER = (
    ('query', 'key', 'value'),
    ('out',),
    ('up', 'gate'),
    ('down',),
    ('kernel',),
)


def linear(x, *weights, outputs: int = 1):
    """Products (..., *O) of x (..., I) with each of the weights (*I, *O).

    The last `outputs` axes of the weights are O; I is the product of the others. With
    outputs=2, x (B, T, D) and a weight (D, N, H) give (B, T, N, H). Computes in the
    dtype of x. One weight gives an array, several give a list.
    """
    weights = [parameter[...] for parameter in weights]
    if isinstance(weights[0], Transposed):
        products = weights[0].products(x)
    else:
        products = [_product(x, matrix.astype(x.dtype), outputs) for matrix in weights]
    return products if len(products) > 1 else products[0]


def _product(x, weights, outputs):
    # As a product of two matrices: with a third axis, XLA for CPU would transpose the
    # weights each time.
    shape = weights.shape[-outputs:]
    flat = weights.reshape(x.shape[-1], math.prod(shape))
    return (x @ flat).reshape(*x.shape[:-1], *shape)


class ParameterSubstitute:
    """An object in place of a parameter, for modules that read `parameter[...]`."""

    def __getitem__(self, key):
        assert key is Ellipsis
        return self


@jax.tree_util.register_dataclass
@dataclass(eq=False)
class Transposed(ParameterSubstitute):
    """Weights of the same input as one matrix, in place of the first of them.

    With the outputs first, XLA for CPU compiles the product with one row to a loop on
    all cores; otherwise it calls a function that runs on one core. With more rows both
    take the same time.
    """

    matrix: jax.Array  # (sum of outputs, in)
    shapes: tuple = field(metadata=dict(static=True))  # output axes of each weight

    def products(self, x, dtype=None):
        """A list of products (..., *O) with x (..., in), in `dtype` or that of x."""
        rows = x.reshape(-1, x.shape[-1])
        matrix = self.matrix.astype(x.dtype)
        if len(rows) == 1:
            product = jnp.matmul(rows, matrix.T, preferred_element_type=dtype)
        else:
            product = jnp.matmul(matrix, rows.T, preferred_element_type=dtype)
            # Without the barrier XLA would undo the transposition.
            product = jax.lax.optimization_barrier(product).T
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])
        outputs = jnp.split(product, ends[:-1], axis=-1)
        return [
            output.reshape(*x.shape[:-1], *shape)
            for output, shape in zip(outputs, self.shapes, strict=True)
        ]


@jax.tree_util.register_static
class HeldBySibling(ParameterSubstitute):
    """In place of weights that are part of another weight's `Transposed`."""


def transpose_params(params):
    """Unstacked parameters with transposed weights in the layers and the head.

    Weights that are not plain arrays (int8) do not change.
    """
    if isinstance(params, tuple):
        return tuple(transpose_params(layer) for layer in params)
    if not isinstance(params, dict):
        return params
    transposed = {name: transpose_params(inner) for name, inner in params.items()}
    for names in APPLIED_TOGETHER:
        names = [name for name in names if isinstance(params.get(name), jax.Array)]
        if names:
            shapes = tuple(params[name].shape[INPUT_AXES[name] :] for name in names)
            flat = [
                params[name].reshape(-1, math.prod(shape))
                for name, shape in zip(names, shapes, strict=True)
            ]
            transposed |= dict.fromkeys(names, HeldBySibling())
            transposed[names[0]] = Transposed(jnp.concatenate(flat, axis=1).T, shapes)
    return transposed
