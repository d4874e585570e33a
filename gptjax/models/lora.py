"""Low-rank adaptation (Hu et al. 2021): w + alpha / rank A B, with w frozen.

For a matrix w from `in` to `out`, stacked over L layers, A (L, in, rank) and B
(L, rank, out) are trained. B starts at zero, so the adapted model starts equal to the
base model. The parameters are a nested dict like the model's, with {'a', 'b'} at each
target and nothing else:

    {'layers': {'attention': {'query': {'a': (L, D, r), 'b': (L, r, N, H)}}}}

Each layer adds A B to w where it computes, so there is no second copy of the model. The
optimizer has state for A and B alone.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gptjax.core.console import UserError
from gptjax.models import gpt
from gptjax.models.linear import INPUT_AXES, ParameterSubstitute


def init_params(settings, lora, key) -> dict:
    """A from N(0, 1 / in) and B of zeros; refuses unknown targets and invalid ranks."""
    targets = _find_targets(settings, lora)
    keys = jax.random.split(key, len(targets))
    params = {}
    for (path, leaf), key in zip(targets.items(), keys, strict=True):
        inputs = 1 + INPUT_AXES[path[-1]]  # with the axis of layers
        shape_a = (*leaf.shape[:inputs], lora.rank)
        shape_b = (leaf.shape[0], lora.rank, *leaf.shape[inputs:])
        std = 1 / math.sqrt(math.prod(shape_a[1:-1]))
        a = std * jax.random.normal(key, shape_a, jnp.float32)
        _set_leaf(params, path, dict(a=a, b=jnp.zeros(shape_b, jnp.float32)))
    return params


def abstract_params(settings, lora) -> dict:
    """Shapes and dtypes of the parameters."""
    return jax.eval_shape(
        lambda key: init_params(settings, lora, key), jax.random.key(0)
    )


def param_axes(settings, lora) -> dict:
    """The tree of the parameters with a tuple of axis names at each leaf."""
    axes = {}
    for path in _find_targets(settings, lora):
        whole = gpt.param_axes(settings)
        for name in path:
            whole = whole[name]
        inputs = 1 + INPUT_AXES[path[-1]]
        factors = dict(a=(*whole[:inputs], None), b=(whole[0], None, *whole[inputs:]))
        _set_leaf(axes, path, factors)
    return axes


def lora_scale(lora) -> float:
    """alpha / rank, the factor of A B."""
    return lora.alpha / lora.rank


def adapt(base, params, scale: float):
    """The base with an `AdaptedMatrix` of w, A and scale B at each target."""
    return _combine(base, params, lambda w, a, b: AdaptedMatrix(w, a, scale * b))


def merge(base, params, scale: float):
    """The base with w + scale A B, in the dtype of w, at each target."""

    def merge_matrix(w, a, b):
        return AdaptedMatrix(w, a, scale * b).astype(w.dtype)

    return _combine(base, params, jax.vmap(merge_matrix))


@jax.tree_util.register_dataclass
@dataclass(eq=False)
class AdaptedMatrix(ParameterSubstitute):
    """w + A B. While layers are stacked, all three have a leading axis L."""

    matrix: jax.Array  # w, (in, out)
    a: jax.Array  # (in, rank)
    b: jax.Array  # (rank, out)

    def astype(self, dtype):
        """The adapted matrix."""
        return (self.matrix + jnp.tensordot(self.a, self.b, 1)).astype(dtype)


def _find_targets(settings, lora) -> dict:
    """{path: shape and dtype} of the matrices that are adapted."""
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
                f'lora.rank={lora.rank}: the matrix {path[-1]!r} has a rank of at most '
                f'{most}: use 1 to {most}'
            )
    return targets


def _combine(base, params, combine):
    """The base with `combine(w, a, b)` at each target."""
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
