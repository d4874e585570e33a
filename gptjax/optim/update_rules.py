"""The direction of an update, before weight decay and learning rate.

Each function returns an optax transformation that turns gradients into an ascent
direction. State leaves that mirror parameters keep the parameters' paths as
the end of theirs, and their shapes, so they can take the parameters' shardings;
`adafactor` says what else it holds.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gptjax.models.linear import INPUT_AXES

# Jordan's quintic: steep at 0, and it leaves singular values near 1, not at it.
QUINTIC = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def adamw(optim, params=None) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015, algorithm 1); the decoupled decay comes later."""
    return optax.scale_by_adam(optim.beta1, optim.beta2, optim.epsilon)


def lion(optim, params=None) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023, algorithm 2): sign(b1 m + (1 - b1) g)."""
    return optax.scale_by_lion(optim.beta1, optim.beta2)


def adafactor(optim, params) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018, algorithm 4), without momentum.

    Updates are clipped to an RMS of 1 and multiplied by the parameter's own RMS,
    so `optim.learning_rate` is relative: some 1e-2. Both are taken layer by layer.

    A parameter whose two longest axes (L aside) have 128 elements or more holds
    `v_row` and `v_col`, its shape less the longest and less the second longest
    axis, and a placeholder `v` of (1,); any other holds `v` of its own shape and
    placeholders `v_row` and `v_col`. Below `layers` all of them, and `count`, lead
    with L.
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
    """Muon for the matrices of the layers, Adam for everything else."""
    parts = jax.tree_util.tree_map_with_path(
        lambda path, _: 'matrices' if is_matrix(path) else 'rest', params
    )
    transforms = {'matrices': scale_by_muon(optim.momentum), 'rest': adamw(optim)}
    return optax.partition(transforms, parts)


# By their names in `optim.name`: `(the section optim, shapes of the parameters)`.
OPTIMIZERS = dict(adamw=adamw, adafactor=adafactor, lion=lion, muon=muon)


def is_matrix(path) -> bool:
    """Whether a parameter's key path names a weight matrix of the layers."""
    names = _path_names(path)
    return names[0] == 'layers' and names[-1] in INPUT_AXES


class MuonState(NamedTuple):
    momentum: optax.Updates  # the parameters' tree and shapes


def scale_by_muon(momentum: float) -> optax.GradientTransformation:
    """Momentum orthogonalised by Newton-Schulz (Jordan 2024, Muon).

        m <- b m + (1 - b) g,    update = sqrt(max(1, out / in)) NS(b m + (1 - b) g)

    with Nesterov's look-ahead and the factor by which a matrix of `in` rows and
    `out` columns moves its outputs as far as a square one.

    Unlike `optax.contrib.scale_by_muon` there is no bias correction, as in Jordan's
    code: NS ignores the scale of what it is given.
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


# By default TPUs round what enters a product of float32 to bfloat16, and some GPUs to
# TF32. Below, A would then drift away from x x^T and be amplified: singular values
# of 17 and 270 came out instead of 1.
@jax.default_matmul_precision('highest')
def newton_schulz(x: jax.Array) -> jax.Array:
    """The nearest semi-orthogonal matrices, roughly: U V^T of x = U S V^T.

    Five steps of x <- (a I + b A + c A^2) x with A = x x^T, from x / |x|. They
    leave singular values within 0.7 to 1.2 (those below 1e-3 of |x| less).

    For wide matrices the factors before x are multiplied first and A is carried
    along as A <- P A P (all of them commute), so that x itself enters two products
    instead of ten: 50 rows^3 operations instead of 90 where columns = 4 rows. It
    costs a digit or two: singular values below 1e-3 drown in the rounding of A,
    and elements are right to 1e-3 of the largest, instead of 1e-5.

    x is (..., rows, columns), float32, and so is the result.
    """
    rows, columns = x.shape[-2:]
    if rows > columns:
        return newton_schulz(x.mT).mT
    a, b, c = QUINTIC
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    if columns <= 1.5 * rows:  # below, the products of P cost more than they save
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
    """NS of a parameter as a batch of (in, out) matrices, in float32, scaled."""
    inputs = 1 + INPUT_AXES[_path_names(path)[-1]]  # and the layers
    out_size = math.prod(update.shape[inputs:])
    matrices = update.astype(jnp.float32).reshape(len(update), -1, out_size)
    scale = max(1, out_size / matrices.shape[-2]) ** 0.5
    return (scale * newton_schulz(matrices)).reshape(update.shape).astype(update.dtype)


def _apply_per_layer(transform):
    """`transform` of each layer by itself; its state leads with L as well."""
    return optax.GradientTransformation(
        jax.vmap(transform.init), jax.vmap(transform.update)
    )


def _path_names(path) -> list[str]:
    """('layers', 'mlp', 'up') of a parameter's key path."""
    return [str(key.key) for key in path]
