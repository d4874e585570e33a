"""Low-rank adaptation (Hu et al. 2021): w + alpha / rank A B, with w frozen.

For a matrix w from `in` to `out`, stacked over L layers, A (L, in, rank) and B
(L, rank, out) are trained. B begins as zeros, so the adapted model is at first the
base, exactly. The parameters are a nested dict like the model's, with {'a', 'b'} in
the place of each target and nothing else:

    {'layers': {'attention': {'query': {'a': (L, D, r), 'b': (L, r, N, H)}}}}

A layer's product A B is added to its w where the layer is computed, so there is never
a second copy of the model, and the optimizer holds state of A and B alone.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gptjax.core.console import UserError
from gptjax.models import gpt
from gptjax.models.linear import INPUT_AXES, ParameterSubstitute


def init_params(settings, lora, key) -> dict:
    """New A, normal with variance 1 / in, and B of zeros.

    A target that the model does not have and a rank out of range are refused.
    """
    targets = _find_targets(settings, lora)
    keys = jax.random.split(key, len(targets))
    params = {}
    for (path, leaf), key in zip(targets.items(), keys, strict=True):
        a, b = _factor_shapes(path, leaf.shape, lora.rank)
        std = 1 / math.sqrt(math.prod(a[1:-1]))
        _set_leaf(params, (*path, 'a'), std * jax.random.normal(key, a, jnp.float32))
        _set_leaf(params, (*path, 'b'), jnp.zeros(b, jnp.float32))
    return params


def abstract_params(settings, lora) -> dict:
    """The shapes of `init_params`."""
    return jax.eval_shape(
        lambda key: init_params(settings, lora, key), jax.random.key(0)
    )


def param_axes(settings, lora) -> dict:
    """The tree of `init_params` with a tuple of axis names at each leaf."""
    axes = {}
    for path in _find_targets(settings, lora):
        whole = gpt.param_axes(settings)
        for name in path:
            whole = whole[name]
        inputs = 1 + INPUT_AXES[path[-1]]
        _set_leaf(axes, (*path, 'a'), (*whole[:inputs], None))
        _set_leaf(axes, (*path, 'b'), (whole[0], None, *whole[inputs:]))
    return axes


def lora_scale(lora) -> float:
    """alpha / rank, which multiplies A B."""
    return lora.alpha / lora.rank


def adapt(base, params, scale: float):
    """The model's parameters, to compute with, of the base and A, B.

    A target becomes an object that adds its product, times `scale`, where a layer
    uses it.
    """
    return _combine(base, params, lambda w, a, b: AdaptedMatrix(w, a, scale * b))


def merge(base, params, scale: float):
    """Plain parameters that compute the same: w + scale A B, in the dtype of w."""

    def merge_matrix(w, a, b):
        return AdaptedMatrix(w, a, scale * b).astype(w.dtype)

    return _combine(base, params, jax.vmap(merge_matrix))


@jax.tree_util.register_dataclass
@dataclass(eq=False)
class AdaptedMatrix(ParameterSubstitute):
    """w + A B; all with a leading axis L while layers are stacked."""

    matrix: jax.Array  # w, (in, out)
    a: jax.Array  # (in, rank)
    b: jax.Array  # (rank, out)

    def astype(self, dtype):
        """The matrix that it stands for."""
        return (self.matrix + jnp.tensordot(self.a, self.b, 1)).astype(dtype)


def _find_targets(settings, lora) -> dict:
    """{path: shape} of the matrices that are adapted."""
    matrices = {}
    leaves = jax.tree_util.tree_leaves_with_path(gpt.abstract_params(settings))
    for path, leaf in leaves:
        names = tuple(key.key for key in path)
        if names[0] == 'layers' and names[-1] in INPUT_AXES:
            matrices[names] = leaf
    available = sorted({path[-1] for path in matrices})
    if not lora.targets:
        raise UserError(f'lora.targets is empty: name some of {", ".join(available)}')
    for name in lora.targets:
        if name not in available:
            raise UserError(
                f'lora.targets: the model has no {name!r}: use {", ".join(available)}'
            )
    targets = {path: m for path, m in matrices.items() if path[-1] in lora.targets}
    for path, matrix in targets.items():
        inputs = 1 + INPUT_AXES[path[-1]]
        most = min(math.prod(matrix.shape[1:inputs]), math.prod(matrix.shape[inputs:]))
        if not 0 < lora.rank <= most:
            raise UserError(
                f'lora.rank={lora.rank}: {path[-1]!r} has a rank of {most} at most: '
                f'use 1 to {most}'
            )
    return targets


def _factor_shapes(path, shape, rank):
    """The shapes of A and B for a stacked matrix."""
    inputs = 1 + INPUT_AXES[path[-1]]
    return (*shape[:inputs], rank), (shape[0], rank, *shape[inputs:])


def _combine(base, params, combine):
    """The base with `combine(w, a, b)` in the place of each target."""
    if not isinstance(base, dict):
        return combine(base, params['a'], params['b'])
    return {
        name: _combine(inner, params[name], combine) if name in params else inner
        for name, inner in base.items()
    }


def _set_leaf(tree, path, value):
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
