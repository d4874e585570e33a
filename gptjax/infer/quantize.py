"""Weights of a byte each: a matrix as whole numbers and a scale for each output.

    w[..., j] ~ round(w[..., j] / s_j) s_j,   s_j = max |w[..., j]| / 127

A quarter of the memory. Where a device fuses the conversion into the product that
uses it (GPU, TPU) decoding, which waits for memory, is faster; on a CPU it is not.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gptjax.models.linear import INPUT_AXES, ParameterSubstitute


@jax.tree_util.register_dataclass
@dataclass(eq=False)
class Int8Matrix(ParameterSubstitute):
    """A matrix in bytes."""

    numbers: jax.Array  # int8, of the matrix' shape
    scales: jax.Array  # float32, the same with 1 for the axes summed over

    def astype(self, dtype):
        """The matrix that it stands for."""
        return (self.numbers.astype(jnp.float32) * self.scales).astype(dtype)


def quantize_params(params):
    """Unstacked parameters with every matrix of layers and head in bytes.

    Embeddings, norms and biases stay: they are read by the row, or small.
    """

    def quantize_leaf(path, leaf):
        inputs = INPUT_AXES.get(path[-1].key)
        # The same names stand for norms' subtrees, never for their leaves.
        return leaf if inputs is None else _quantize(leaf, tuple(range(inputs)))

    return jax.tree_util.tree_map_with_path(quantize_leaf, params)


def _quantize(matrix, axes) -> Int8Matrix:
    scales = jnp.max(jnp.abs(matrix), axis=axes, keepdims=True) / 127
    numbers = jnp.round(matrix / jnp.where(scales > 0, scales, 1))
    return Int8Matrix(numbers.astype(jnp.int8), scales)


def cast_params(params, dtype):
    """Unstacked parameters with those in `dtype` that are only ever read in it.

    Those are the matrices of layers and head, and the embedding unless learned
    positions are added to it in float32. Norms are float32, and biases small. With
    the dtype of the model's products, what it computes stays the same.
    """
    embeddings = set() if 'position' in params['embed'] else {'token'}
    cast = {jax.tree_util.DictKey(name) for name in INPUT_AXES.keys() | embeddings}
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.astype(dtype) if path[-1] in cast else leaf, params
    )
