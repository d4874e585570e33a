"""One table of rules that maps the names of array axes to axes of the mesh."""

import math
from collections.abc import Collection

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gptjax.core.console import UserError

# Axes of parameters first, then of activations. An axis without a rule is not split:
# every device holds all of it.
RULES = {
    'embed': 'fsdp',  # D
    'heads': 'tensor',  # N
    'kv_heads': 'tensor',  # K
    'mlp': 'tensor',  # F
    'vocab': 'tensor',  # V
    'batch': ('data', 'fsdp'),  # B
    'tokens': ('data', 'fsdp'),  # B T as one axis, if mesh.context=1
    'time': 'context',  # T
}

# If the size of such an axis is not divisible, every device holds all of it: the axis
# is small (the few heads of multi-query attention) or rarely divisible (50,257 tokens).
MAY_BE_WHOLE = ('kv_heads', 'vocab')

# The config field that sets the size of an axis, for messages.
AXIS_FIELDS = {
    'embed': 'model.width',
    'heads': 'model.num_heads',
    'mlp': 'model.mlp_width',
    'batch': 'train.batch_size',
    'tokens': 'train.batch_size',
    'time': 'data.context',
}


def partition_spec(axes: tuple, shape: tuple, mesh: Mesh) -> PartitionSpec:
    """The spec of an array of `shape`, given the logical names of its axes.

    The size of an axis has to be divisible by the size of its mesh axes.

        ('embed', 'heads', None), (512, 8, 64), fsdp=2, tensor=4
            -> PartitionSpec('fsdp', 'tensor')
    """
    spec = []
    for name, size in zip(axes, shape, strict=True):
        rule = RULES.get(name)
        mesh_axes = (rule,) if isinstance(rule, str) else (rule or ())
        count = math.prod(mesh.shape[axis] for axis in mesh_axes)
        divides = size % count == 0
        if not divides and name not in MAY_BE_WHOLE:
            across = ' * '.join(f'mesh.{axis}' for axis in mesh_axes)
            raise UserError(
                f'{AXIS_FIELDS.get(name, name)}={size} is not divisible by '
                f'{across}={count}: change one of them'
            )
        spec.append(rule if divides and count > 1 else None)
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def constrain(x, *axes):
    """`x` with the sharding of the rules, in a jitted function; without a mesh, `x`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh))


def axis_size(name: str) -> int:
    """The size of an axis of the current mesh; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[name]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of the (B, T) arrays of a batch."""
    return NamedSharding(mesh, PartitionSpec(RULES['batch'], RULES['time']))


def put_on_mesh(batch, mesh: Mesh, without_tokens: Collection[str] = ()):
    """Makes global arrays of a batch that every process holds completely.

    The first axis of an array is split over the mesh's batch axes. If an array has
    several axes, the last one is the axis of tokens and is split over `context`.
    (`dataloader` differs: there a process reads only the rows of its own devices.)
    `without_tokens` names arrays with several axes but without an axis of tokens.
    """

    def put(path, array):
        spec = [RULES['batch'], *[None] * (array.ndim - 1)]
        if array.ndim > 1 and _path_keys(path)[-1] not in without_tokens:
            spec[-1] = RULES['time']
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    return jax.tree_util.tree_map_with_path(put, batch)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state, axes_of_parameters, mesh: Mesh):
    """The shardings of a whole training state: parameters and optimizer state.

    optax keeps the parameters' tree inside its states. So a leaf of the optimizer state
    belongs to a parameter if its path ends with the parameter's path, and it gets the
    parameter's sharding if it has the same shape. All other leaves (counts, factored
    moments) are replicated. `state` may also be only parameters.

        opt_state[1].mu.layers.mlp.up    the sharding of params.layers.mlp.up
        opt_state[1].count               replicated
    """
    is_axes = lambda x: isinstance(x, tuple)
    leaves = jax.tree_util.tree_leaves_with_path(axes_of_parameters, is_leaf=is_axes)
    params = getattr(state, 'params', state)
    shapes = {
        _path_keys(path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    by_path = {
        _path_keys(path): (axes, shapes[_path_keys(path)]) for path, axes in leaves
    }

    def find_sharding(path, leaf):
        keys = _path_keys(path)
        for start in range(len(keys)):
            axes, shape = by_path.get(keys[start:], (None, None))
            if shape == leaf.shape:
                return NamedSharding(mesh, partition_spec(axes, shape, mesh))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(find_sharding, state)


def _path_keys(path) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
