"""Large blocks of memory use large pages if the system has them."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from gptjax.core.process import TUNABLES
from tests import runs

# Fills a block of 128 MB; prints how often the system had to provide a page.
PROGRAM = """
import ctypes, resource, sys
from gptjax.core import process
process.use_large_pages()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
before = faults()
ctypes.memset(c.malloc(ctypes.c_size_t(2**27)), 1, 2**27)
print(faults() - before, *sys.argv[1:])
"""
CHOICE = Path('/sys/kernel/mm/transparent_hugepage/enabled')
# glibc can request large pages since 2.35.
LIBRARY, VERSION = platform.libc_ver()
ABLE = LIBRARY == 'glibc' and [int(n) for n in VERSION.split('.')] >= [2, 35]
SMALL = 2**27 // os.sysconf('SC_PAGE_SIZE')


def run(**environment) -> int:
    plain = {name: os.environ[name] for name in os.environ if name != TUNABLES}
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, 'a b', '--c=d'],
        cwd=runs.ROOT,
        env=dict(plain, **environment),
        capture_output=True,
        text=True,
        check=True,
    )
    pages, words = done.stdout.strip().split(' ', 1)
    assert words == 'a b --c=d'  # the command line is repeated unchanged
    return int(pages)


@pytest.mark.skipif(
    not ABLE or not CHOICE.exists() or '[never]' in CHOICE.read_text(),
    reason='no large pages',
)
def test_large_blocks_come_in_large_pages():
    assert run() < SMALL / 10


@pytest.mark.skipif(
    CHOICE.exists() and '[always]' in CHOICE.read_text(), reason='all pages are large'
)
def test_who_says_otherwise_is_heard():
    assert run(**{TUNABLES: ''}) >= SMALL
