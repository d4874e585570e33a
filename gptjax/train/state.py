"""The training state: step, parameters and optimizer state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from gptjax.parallel.sharding import state_shardings


class TrainState(NamedTuple):
    """The arrays that a step updates and a checkpoint contains.

    step: int32 scalar, the updates so far, including skipped ones; the index of the
        next batch.
    params: nested dict of float32 arrays.
    """

    step: jax.Array
    params: Any
    opt_state: Any


def abstract_state(params, optimizer: optax.GradientTransformation, axes, mesh: Mesh):
    """The shapes, dtypes and shardings of a state.

    `params` may be shapes; `axes` is the same tree with a tuple of axis names per leaf.
    """
    state = jax.eval_shape(lambda p: new_state(p, optimizer), params)
    shardings = state_shardings(state, axes, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        state,
        shardings,
    )


def new_state(params, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def create_state(init, optimizer, abstract: TrainState, *args) -> TrainState:
    """A new state with parameters `init(*args)`; each device computes its own shards.

    Random values do not depend on the mesh. `args` are a key or initial weights: arrays
    that `init` closed over would become constants of the compiled program.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def make(*args):
        # A model imported in bfloat16 is trained in float32, as its checkpoints say.
        params = jax.tree.map(
            lambda array, leaf: array.astype(leaf.dtype), init(*args), abstract.params
        )
        return new_state(params, optimizer)

    return jax.jit(make, out_shardings=shardings)(*args)
