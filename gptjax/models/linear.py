"""Linear maps, and their weights laid out for one row at a time on a CPU."""

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

# How many axes of one layer's weights are inputs; the others are outputs.
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

# Weights of one input, of which `transpose_params` makes one matrix.
APPLIED_TOGETHER = (
    ('query', 'key', 'value'),
    ('out',),
    ('up', 'gate'),
    ('down',),
    ('kernel',),
)


def linear(x, *weights, outputs: int = 1):
    """(..., *O) of x (..., I) and weights (*I, *O), for each of the weights.

    As products of two matrices: over three axes XLA for CPU would transpose the
    weights first, each time.

    The last `outputs` axes of the weights are outputs; the others are one axis of x,
    in whose dtype it is computed. One weight gives an array, several a list.
    """
    weights = [parameter[...] for parameter in weights]
    if isinstance(weights[0], Transposed):
        products = weights[0].products(x)
    else:
        products = [_product(x, matrix.astype(x.dtype), outputs) for matrix in weights]
    return products if len(products) > 1 else products[0]


def _product(x, weights, outputs):
    shape = weights.shape[-outputs:]
    flat = weights.reshape(x.shape[-1], math.prod(shape))
    return (x @ flat).reshape(*x.shape[:-1], *shape)


class ParameterSubstitute:
    """An object in the place of a module's parameter, which reads `parameter[...]`."""

    def __getitem__(self, key):
        assert key is Ellipsis
        return self


@jax.tree_util.register_dataclass
@dataclass(eq=False)
class Transposed(ParameterSubstitute):
    """Weights of one input as one matrix, outputs first; stands for the first of them.

    The product with one row is then compiled by XLA for CPU to a loop that all cores
    share, and otherwise to a call that runs on one. With more rows it makes no
    difference.
    """

    matrix: jax.Array  # (sum of outputs, in)
    shapes: tuple = field(metadata=dict(static=True))  # outputs of each of the weights

    def products(self, x, dtype=None):
        """[(..., *outputs), …] of x (..., in), in `dtype` or that of x."""
        rows = x.reshape(-1, x.shape[-1])
        matrix = self.matrix.astype(x.dtype)
        if len(rows) == 1:
            product = jnp.matmul(rows, matrix.T, preferred_element_type=dtype)
        else:
            product = jnp.matmul(matrix, rows.T, preferred_element_type=dtype)
            # Without it XLA would undo the transposition.
            product = jax.lax.optimization_barrier(product).T
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])
        outputs = jnp.split(product, ends[:-1], axis=-1)
        return [
            output.reshape(*x.shape[:-1], *shape)
            for output, shape in zip(outputs, self.shapes, strict=True)
        ]


@jax.tree_util.register_static
class HeldBySibling(ParameterSubstitute):
    """Stands for weights that lie in their sibling's `Transposed`."""


def transpose_params(params):
    """Unstacked parameters with the weights of layers and head transposed.

    What is no plain array stays as it is.
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
