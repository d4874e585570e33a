"""What a process frees stays with it."""

import ctypes
import os
import subprocess
import sys

import pytest

from tests import runs

# Ten times a block that glibc would give back; prints the pages it was given.
PROGRAM = """
import resource
from gptjax import memory
memory.ACCELERATORS = ()
if {keeps}:
    memory.keep_freed()
import numpy as np
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**24)
before = faults()
for _ in range(10):
    np.ones(2**24)
print(faults() - before)
"""


def pages(keeps: bool, **environment) -> int:
    plain = {name: os.environ[name] for name in os.environ if 'MALLOC' not in name}
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM.format(keeps=keeps)],
        cwd=runs.ROOT,
        env=dict(plain, **environment),
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), 'mallopt'), reason='the C library is not glibc'
)
def test_large_blocks_are_kept():
    kept, given_back = pages(True), pages(False)
    assert given_back >= 10 * 2**24 * 8 / 2**21  # pages of two MB at most
    assert kept < given_back / 10


def test_who_says_otherwise_is_heard():
    """The environment's own settings hold: nothing is kept."""
    assert pages(True, MALLOC_TOP_PAD_='0') >= 10 * 2**24 * 8 / 2**21
