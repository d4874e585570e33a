"""Update rules: from gradients to the direction of an update.

Weight decay and the learning rate are applied afterwards. Each function returns an
optax transformation whose output points uphill, like the gradients. A state leaf that
belongs to a parameter has its shape, and its path ends with the parameter's path, so it
gets the parameter's sharding. `adafactor` documents its exceptions.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gptjax.models.linear import INPUT_AXES

# Jordan's polynomial of degree 5. It is steep at 0. Singular values end near 1, not at
# 1.
QUINTIC = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def adamw(optim, params=None) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015, algorithm 1); `make_optimizer` adds the weight decay."""
    return optax.scale_by_adam(optim.beta1, optim.beta2, optim.epsilon)


def lion(optim, params=None) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023, algorithm 2): sign(b1 m + (1 - b1) g)."""
    return optax.scale_by_lion(optim.beta1, optim.beta2)


def adafactor(optim, params) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018, algorithm 4), without momentum.

    Updates are clipped to an RMS of 1 and multiplied by the RMS of the parameter, so
    `optim.learning_rate` is relative to the weights, typically 1e-2. Each layer has an
    RMS of its own.

    Shapes of the state, where the axis L of the layers does not count: if the two
    longest axes of a parameter have 128 elements or more, `v_row` has its shape without
    the longest axis, `v_col` without the second longest, and `v` is a placeholder of
    shape (1,). Otherwise `v` has the parameter's shape, and `v_row` and `v_col` are
    placeholders. Under `layers`, each of them and `count` begin with the axis L.

        a parameter (L, 512, 2048)    v_row (L, 512), v_col (L, 2048), v (L, 1)
        a parameter (L, 512)          v_row (L, 1), v_col (L, 1), v (L, 512)
    """
    each = optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    )
    parts = jax.tree_util.tree_map_with_path(
        lambda path, _: 'layers' if _path_names(path)[0] == 'layers' else 'rest', params
    )
    return optax.partition({'layers': _apply_per_layer(each), 'rest': each}, parts)


def muon(optim, params) -> optax.GradientTransformation:
    """Muon for the matrices of the layers, Adam for all other parameters."""
    parts = jax.tree_util.tree_map_with_path(
        lambda path, _: 'matrices' if is_matrix(path) else 'rest', params
    )
    transforms = {'matrices': scale_by_muon(optim.momentum), 'rest': adamw(optim)}
    return optax.partition(transforms, parts)


# From a value of `optim.name` to a function of the section `optim` and the parameters
# (or their shapes).
OPTIMIZERS = dict(adamw=adamw, adafactor=adafactor, lion=lion, muon=muon)


def is_matrix(path) -> bool:
    """Whether a parameter's key path names a weight matrix of the layers."""
    names = _path_names(path)
    return names[0] == 'layers' and names[-1] in INPUT_AXES


class MuonState(NamedTuple):
    momentum: optax.Updates  # has the tree and shapes of the parameters


def scale_by_muon(momentum: float) -> optax.GradientTransformation:
    """Momentum orthogonalised by Newton-Schulz (Jordan 2024, Muon).

        m <- b m + (1 - b) g,    update = sqrt(max(1, out / in)) NS(b m + (1 - b) g)

    The update uses the momentum after the next step with the same gradient (Nesterov).
    The factor makes a matrix of `in` rows and `out` columns change its outputs as much
    as a square matrix does.

    As in Jordan's code there is no bias correction (`optax.contrib.scale_by_muon` has
    one): NS divides its input by its norm, so a factor has no effect.
    """

    def init(params):
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(gradients, state, params=None):
        del params

        def mix(old, new):
            return momentum * old + (1 - momentum) * new

        moments = jax.tree.map(mix, state.momentum, gradients)
        ahead = jax.tree.map(mix, moments, gradients)
        updates = jax.tree_util.tree_map_with_path(_orthogonalize, ahead)
        return updates, MuonState(moments)

    return optax.GradientTransformation(init, update)


# By default, TPUs round the inputs of a float32 product to bfloat16, and some GPUs to
# TF32. Then A below differs more and more from x x^T, and the steps amplify the
# difference: singular values of 17 and 270 were measured instead of 1.
@jax.default_matmul_precision('highest')
def newton_schulz(x: jax.Array) -> jax.Array:
    """Approximately the nearest semi-orthogonal matrices: U V^T for x = U S V^T.

    Five steps of x <- P x with P = a I + b A + c A^2 and A = x x^T, starting from
    x / |x|. Afterwards the singular values are between 0.7 and 1.2, except that those
    below 1e-3 of |x| remain smaller.

    For wide matrices, the five factors P are multiplied with each other first, and A is
    updated as A <- P A P (these matrices commute). So x enters two products instead of
    ten: 50 rows^3 operations instead of 90 if columns = 4 rows. This costs one or two
    digits of accuracy: singular values below 1e-3 are lost in the rounding of A, and
    the error of an element is 1e-3 of the largest one, instead of 1e-5.

    x has shape (..., rows, columns) and dtype float32; the result has the same.
    """
    rows, columns = x.shape[-2:]
    if rows > columns:
        return newton_schulz(x.mT).mT
    a, b, c = QUINTIC
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    if columns <= 1.5 * rows:  # multiplying the factors would cost more
        for _ in range(NEWTON_SCHULZ_STEPS):
            gram = x @ x.mT
            x = a * x + (b * gram + c * (gram @ gram)) @ x
        return x
    gram, factors = x @ x.mT, None
    for step in range(NEWTON_SCHULZ_STEPS):
        factor = a * jnp.eye(rows, dtype=x.dtype) + b * gram + c * (gram @ gram)
        factors = factor if factors is None else factor @ factors
        if step < NEWTON_SCHULZ_STEPS - 1:
            gram = factor @ (gram @ factor)
    return factors @ x


def _orthogonalize(path, update):
    """Reshapes a parameter to a batch of (in, out) matrices, applies NS, scales it."""
    inputs = 1 + INPUT_AXES[_path_names(path)[-1]]  # the axis L, then the input axes
    out_size = math.prod(update.shape[inputs:])
    matrices = update.astype(jnp.float32).reshape(len(update), -1, out_size)
    scale = max(1, out_size / matrices.shape[-2]) ** 0.5
    return (scale * newton_schulz(matrices)).reshape(update.shape).astype(update.dtype)


def _apply_per_layer(transform):
    """Applies `transform` to each layer by itself; its state begins with the axis L."""
    return optax.GradientTransformation(
        jax.vmap(transform.init), jax.vmap(transform.update)
    )


def _path_names(path) -> list[str]:
    """The names in a parameter's key path, as ['layers', 'mlp', 'up']."""
    return [str(key.key) for key in path]
