"""int8 weights: a matrix of int8 numbers with one float32 scale for each output.

    w[..., j] ~ round(w[..., j] / s_j) s_j,   s_j = max |w[..., j]| / 127

They take a quarter of the memory of float32. Decoding is limited by memory bandwidth,
so it gets faster where the compiler fuses the conversion into the matrix product (GPU,
TPU; not CPU).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gptjax.models.linear import INPUT_AXES, ParameterSubstitute


@jax.tree_util.register_dataclass
@dataclass(eq=False)
class Int8Matrix(ParameterSubstitute):
    numbers: jax.Array  # int8, the shape of the matrix
    scales: jax.Array  # float32, the same shape with 1 for the input axes

    def astype(self, dtype):
        """The dequantised matrix."""
        return (self.numbers.astype(jnp.float32) * self.scales).astype(dtype)


def quantize_params(params):
    """Unstacked parameters with int8 matrices in the layers and the head.

    Embeddings stay float32 because only single rows are read, norms and biases
    because they are small.
    """

    def quantize_leaf(path, leaf):
        inputs = INPUT_AXES.get(path[-1].key)
        return leaf if inputs is None else _quantize(leaf, tuple(range(inputs)))

    return jax.tree_util.tree_map_with_path(quantize_leaf, params)


def _quantize(matrix, axes) -> Int8Matrix:
    scales = jnp.max(jnp.abs(matrix), axis=axes, keepdims=True) / 127
    numbers = jnp.round(matrix / jnp.where(scales > 0, scales, 1))
    return Int8Matrix(numbers.astype(jnp.int8), scales)


def cast_params(params, dtype):
    """Unstacked parameters with the matrices of layers and head in `dtype`.

    The token embedding is cast too, unless learned positions are added to it in
    float32. Norms compute in float32, and biases are small. If `dtype` is the model's
    compute dtype, the results are bitwise the same.
    """
    embeddings = set() if 'position' in params['embed'] else {'token'}
    cast = {jax.tree_util.DictKey(name) for name in INPUT_AXES.keys() | embeddings}
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.astype(dtype) if path[-1] in cast else leaf, params
    )
