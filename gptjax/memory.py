"""The host's memory: what a process frees, it keeps for the next step."""

import ctypes
import os
from pathlib import Path

# Of <malloc.h>: which number `mallopt` knows an option by.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
# What the drivers of GPUs and TPUs make.
ACCELERATORS = ('nvidia0', 'kfd', 'accel0', 'vfio/[0-9]*')


def keep_freed() -> None:
    """Has the C library keep large blocks that are freed, where CPUs do the work.

    XLA for CPU asks for a step's intermediate arrays anew at every step. glibc takes
    blocks of that size from the system and gives them back at once, and the kernel
    fills them with zeros, page by page, each time: a fifth of a training step. The
    price is that a process never shrinks, and that its threads share one heap.

    To be called before other threads begin, each with a heap of its own. Does nothing
    where there is an accelerator, where `MALLOC_…` or `GLIBC_TUNABLES` in the
    environment say how memory is to be had, or where the C library is another.
    """
    if any(any(Path('/dev').glob(name)) for name in ACCELERATORS):
        return
    if any(name.startswith(('MALLOC_', 'GLIBC_TUNABLES')) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
