"""The TPU slices of Google Cloud: chips, hosts and topology of each accelerator type.

From the pages of each generation at https://cloud.google.com/tpu/docs/ (v4, v5e, v5p,
v6e), the runtimes from …/runtimes, the labels of GKE's nodes from
https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus.
"""

from typing import NamedTuple

from gptjax.core.console import UserError


class TpuType(NamedTuple):
    """A slice, such as v5litepod-16: 16 chips on 4 hosts, a mesh of 4x4."""

    name: str
    chips: int
    hosts: int
    topology: str
    runtime: str  # --runtime-version of a Cloud TPU VM
    gke_label: str  # cloud.google.com/gke-tpu-accelerator of a node
    ray_type: str  # accelerator_type of Ray's ScalingConfig

    @property
    def chips_per_host(self) -> int:
        return self.chips // self.hosts


# generation: (cores per chip, runtime, label on GKE, name in Ray). The number in the
# name of a type counts cores.
GENERATIONS = {
    'v4': (2, 'tpu-ubuntu2204-base', 'tpu-v4-podslice', 'TPU-V4'),
    'v5p': (2, 'v2-alpha-tpuv5', 'tpu-v5p-slice', 'TPU-V5P'),
    'v5litepod': (1, 'v2-alpha-tpuv5-lite', 'tpu-v5-lite-podslice', 'TPU-V5LITEPOD'),
    'v6e': (1, 'v2-alpha-tpuv6e', 'tpu-v6e-slice', 'TPU-V6E'),
}
CUBES = '2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16'
SQUARES = '1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16'
TOPOLOGIES = {
    'v4': CUBES,
    'v5p': f'{CUBES} 16x16x16 16x16x24',
    'v5litepod': SQUARES,
    'v6e': SQUARES,
}


def _list_types():
    for generation, (cores, *names) in GENERATIONS.items():
        for topology in TOPOLOGIES[generation].split():
            chips = 1
            for length in topology.split('x'):
                chips *= int(length)
            # Four chips a host; one host alone has up to eight of v5e and v6e.
            hosts = 1 if chips <= 8 and cores == 1 else chips // 4
            name = f'{generation}-{chips * cores}'
            yield name, TpuType(name, chips, hosts, topology, *names)


TPU_TYPES = dict(_list_types())


def find_tpu_type(name: str) -> TpuType:
    """The type of that name; UserError that lists those of its generation."""
    if name in TPU_TYPES:
        return TPU_TYPES[name]
    generation = name.split('-')[0]
    known = [key for key in TPU_TYPES if key.split('-')[0] == generation]
    known = known or [f'{generation}-N' for generation in GENERATIONS]
    raise UserError(
        f'--accelerator={name}: no such TPU slice: use one of {", ".join(known)}'
    )
