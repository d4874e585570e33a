"""The training state: three plain pytrees, made where they will live."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from gptjax.parallel.sharding import state_shardings


class TrainState(NamedTuple):
    """Everything that a step reads and writes, and a checkpoint holds.

    step: int32 scalar, updates tried so far; also the next batch's number.
    params: nested dict of float32 arrays.
    """

    step: jax.Array
    params: Any
    opt_state: Any


def abstract_state(params, optimizer: optax.GradientTransformation, axes, mesh: Mesh):
    """The state's shapes, dtypes and shardings, without making it.

    `params` may be shapes; `axes` is their tree, a tuple of axis names at each leaf.
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
    """A new state with parameters `init(*args)`, each device making its own part of it.

    What is drawn does not depend on the mesh. `args` are a key, or weights to begin
    with: as arguments they are not compiled in.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    make = lambda *args: new_state(init(*args), optimizer)
    return jax.jit(make, out_shardings=shardings)(*args)
