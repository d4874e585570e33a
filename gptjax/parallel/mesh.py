"""The mesh: arranges all devices along named axes, by the config section `mesh`."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from gptjax.core.console import UserError

AXES = ('data', 'fsdp', 'tensor', 'context')


def make_mesh(config: ConfigDict, devices=None) -> Mesh:
    """The mesh of the section `mesh` over all devices of all processes.

    The sizes of the axes have to multiply to the number of devices. One of them may be
    -1: it becomes what the others leave.

        data=-1, tensor=2, fsdp=1, context=1 on 8 devices: data becomes 4
    """
    devices = jax.devices() if devices is None else devices
    sizes = {axis: int(config[axis]) for axis in AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(free) > 1:
        raise UserError(
            f'mesh.{free[0]} and mesh.{free[1]} are both -1: give one of them a size'
        )
    if fixed > len(devices):
        given = ', '.join(f'{axis}={size}' for axis, size in sizes.items() if size > 1)
        raise UserError(
            f'mesh ({given}) needs {fixed} devices and there are {len(devices)}: '
            'lower one of them'
        )
    if free:
        if len(devices) % fixed:
            raise UserError(
                f'mesh.{free[0]}=-1: {len(devices)} devices do not divide by the '
                f'{fixed} of the other axes: change one of them'
            )
        sizes[free[0]] = len(devices) // fixed
    elif fixed != len(devices):
        raise UserError(
            f'mesh uses {fixed} of {len(devices)} devices: set mesh.data=-1 to use all'
        )
    # Auto: the compiler chooses the shardings that no rule determines, so a new
    # operation in a model never fails to trace.
    return Mesh(
        np.asarray(devices).reshape([sizes[axis] for axis in AXES]),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
    )


def get_mesh(params) -> Mesh:
    """The mesh of the parameters' shardings, or else a mesh of their single device."""
    leaf = jax.tree.leaves(params)[0]
    mesh = getattr(leaf.sharding, 'mesh', None)
    return mesh or make_mesh({axis: 1 for axis in AXES}, list(leaf.devices()))


def batch_shards(mesh: Mesh) -> int:
    """The number of shards of the batch axis."""
    return mesh.shape['data'] * mesh.shape['fsdp']
