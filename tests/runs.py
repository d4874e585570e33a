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
# The code of one of several processes, which find each other by the environment.
PROCESS = """
import sys, jax
from gptjax.cli import main
from gptjax.parallel import multihost
multihost.SHARED_SECONDS = 3.0
argv = sys.argv[1:]
"""
COMPARED = ('step', 'split', 'loss', 'grad_norm', 'bits_per_byte')


def gptjax(*words) -> int:
    """Runs the command line in this process, repeatedly if wanted; its exit code."""
    argv = ['gptjax', *map(str, words)]
    with typed(argv):
        return main(argv)


@contextlib.contextmanager
def typed(argv: list[str]):
    """Acts as a process that was started with `argv`; restores the flags afterwards."""
    before = flagsaver.save_flag_values()
    # ml_collections looks for the fields to change in sys.argv.
    with mock.patch.object(sys, 'argv', argv):
        try:
            yield
        finally:
            # A library that was imported in here stays imported and needs its flags.
            # The flags of a config's fields are defined again by each config.
            now = flagsaver.save_flag_values()
            new = {name: now[name] for name in now if not name.startswith('config.')}
            flagsaver.restore_flag_values(new | before)


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """The environment variables of a process that a test starts.

    Most of the time of such a process is compilation of the same programs, so the
    processes share a cache. For several devices, where compilation takes longest, most
    optimizations are off, as in the process of the tests.
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
    """Starts the command line in a new process; pipes receive its output."""
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
        words: the words of the command line.
        others: the words of the other processes, if they differ.
        before: code that each process runs before the command.
        devices: number of devices per process.
        count: number of processes.
    """
    cluster = dict(
        JAX_COORDINATOR_ADDRESS=f'localhost:{free_port()}', JAX_NUM_PROCESSES=str(count)
    )
    code = f"{PROCESS}\n{before}\nsys.argv[0] = 'gptjax'\nsys.exit(main(sys.argv))"
    return [
        subprocess.Popen(
            [sys.executable, '-c', code, *map(str, its)],
            cwd=ROOT,
            env=environment(devices, JAX_PROCESS_ID=str(number), **cluster),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, its in enumerate((words, *(others or [words] * (count - 1))))
    ]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(('localhost', 0))
        return free.getsockname()[1]


def finish(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    """Waits for exit code `code`; returns (standard output, standard error)."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == code, f'{process.returncode}\n{output}\n{errors}'
    return output, errors


def copy(workdir: Path, to: Path) -> Path:
    shutil.copytree(workdir, to)
    return to


def records(workdir: Path) -> list[dict]:
    """The fields of each line in metrics.jsonl that have to be equal in two runs."""
    return [
        {name: line[name] for name in COMPARED if name in line}
        for line in read_metrics(workdir / 'metrics.jsonl')
    ]
