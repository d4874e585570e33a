"""The peak FLOP/s of a device, for model FLOPs utilisation (MFU)."""

import math
import re
import timeit

import jax
import jax.numpy as jnp

from gptjax.parallel.multihost import print_once

# Dense bfloat16 peak of one device, from data sheets, in TFLOP/s. A name also matches
# device kinds that add words to it: 'NVIDIA H100' matches 'NVIDIA H100 80GB HBM3'.
PEAK_TFLOPS = {
    'TPU v4': 275.0,
    'TPU v5 lite': 197.0,
    'TPU v5e': 197.0,
    'TPU v5': 459.0,
    'TPU v5p': 459.0,
    'TPU v6 lite': 918.0,
    'TPU v6e': 918.0,
    'NVIDIA A100': 312.0,
    'NVIDIA H100': 989.0,  # SXM
    'NVIDIA H100 NVL': 835.0,
    'NVIDIA H100 PCIe': 756.0,
    'NVIDIA H200': 989.0,
    'NVIDIA H200 NVL': 835.0,
    'NVIDIA B200': 2250.0,
    'NVIDIA L4': 121.0,
}


def peak_tflops(configured: float = 0.0) -> float:
    """The peak of one device in TFLOP/s: configured, from the table, or measured.

    The table is of bfloat16, whatever dtype the model computes in. On a CPU, the rate
    of a float32 product of 1024 x 1024 matrices is measured, and divided by the number
    of JAX devices that share the CPU. The peak of an unknown accelerator is NaN.
    """
    if configured:
        return configured
    device = jax.devices()[0]
    # The longest names first: 'TPU v5 lite' also starts with 'TPU v5'.
    for name in sorted(PEAK_TFLOPS, key=len, reverse=True):
        if re.match(rf'{name}\b', device.device_kind):
            return PEAK_TFLOPS[name]
    if device.platform == 'cpu':
        return _measure_tflops() / jax.device_count()
    print_once(
        f'train.peak_tflops=0: the peak of {device.device_kind} is unknown, so there '
        'is no MFU: set train.peak_tflops'
    )
    return math.nan


def _measure_tflops(size: int = 1024, repeats: int = 5) -> float:
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    multiply = lambda: product(x).block_until_ready()
    return 2 * size**3 / min(timeit.repeat(multiply, number=1, repeat=repeats)) / 1e12
