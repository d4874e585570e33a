"""Run directories and the command line, for tests of whole runs."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

from absl.testing import flagsaver

from gptjax.cli import main
from gptjax.train.metrics import read_metrics

ROOT = Path(__file__).parents[1]
# configs/tiny.py, trained for a moment.
SHORT = (
    '--config=configs/tiny.py',
    '--config.train.num_steps=4',
    '--config.train.eval_every=2',
    '--config.train.eval_batches=1',
    '--config.checkpoint.every=2',
    '--config.optim.warmup_steps=0',
)
# One of several processes, told what a cluster's environment would tell
# `jax.distributed.initialize`.
PROCESS = """
import sys, jax
from gptjax.cli import main
from gptjax.parallel import multihost
multihost.SHARED_SECONDS = 3.0
port, count, number, *argv = sys.argv[1:]
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
initialize = jax.distributed.initialize
jax.distributed.initialize = lambda: initialize(
    f'localhost:{port}', int(count), int(number)
)
sys.argv = ['gptjax', *argv, '--multihost']
"""
COMPARED = ('step', 'split', 'loss', 'grad_norm', 'bits_per_byte')


def gptjax(*words) -> int:
    """Runs the command line in this process, as often as one likes; its exit code."""
    argv = ['gptjax', *map(str, words)]
    with typed(argv):
        return main(argv)


@contextlib.contextmanager
def typed(argv: list[str]):
    """As if a process began with `argv`; its flags are forgotten afterwards."""
    before = flagsaver.save_flag_values()
    # ml_collections looks for the fields to change in sys.argv.
    with mock.patch.object(sys, 'argv', argv):
        try:
            yield
        finally:
            # A library that was first imported in here stays imported, and looks for
            # its flags; those of a config's fields are defined anew by each config.
            now = flagsaver.save_flag_values()
            new = {name: now[name] for name in now if not name.startswith('config.')}
            flagsaver.restore_flag_values(new | before)


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """Of a process that a test starts.

    Most of such a process' time is compilation, of the same programs over and over:
    what one has compiled the next ones find. For several devices, where that takes
    longest, it is done as in the tests' own process.
    """
    if devices > 1:
        more['JAX_DISABLE_MOST_OPTIMIZATIONS'] = 'true'
    return dict(
        os.environ,
        JAX_PLATFORMS='cpu',
        XLA_FLAGS=f'--xla_force_host_platform_device_count={devices}',
        JAX_COMPILATION_CACHE_DIR=os.environ['GPTJAX_TESTS_COMPILED'],
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES='-1',
        **more,
    )


def start(*words, devices: int = 1, **options) -> subprocess.Popen:
    """Runs the command line in a process of its own, its output in pipes."""
    options = dict(dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE), **options)
    return subprocess.Popen(
        [sys.executable, '-m', 'gptjax', *map(str, words)],
        cwd=ROOT,
        env=environment(devices),
        text=True,
        **options,
    )


def start_cluster(
    words, *others, before: str = '', devices: int = 4, count: int = 2
) -> list[subprocess.Popen]:
    """Several processes, as one cluster.

    Args:
        words: of the command line.
        others: the words of the other processes, if they differ.
        before: code that all run before the command.
        devices: of each.
        count: the number of processes.
    """
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    code = f'{PROCESS}\n{before}\nsys.exit(main(sys.argv))'
    return [
        subprocess.Popen(
            [sys.executable, '-c', code, *map(str, (port, count, number, *its))],
            cwd=ROOT,
            env=environment(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, its in enumerate((words, *(others or [words] * (count - 1))))
    ]


def finish(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    """(standard output, standard error) of a process that ends with `code`."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == code, f'{process.returncode}\n{output}\n{errors}'
    return output, errors


def copy(workdir: Path, to: Path) -> Path:
    shutil.copytree(workdir, to)
    return to


def records(workdir: Path) -> list[dict]:
    """What must be the same in two runs, of every line in metrics.jsonl."""
    return [
        {name: line[name] for name in COMPARED if name in line}
        for line in read_metrics(workdir / 'metrics.jsonl')
    ]
