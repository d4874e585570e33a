"""Every test runs on the CPU, split into eight devices."""

import fcntl
import gc
import os
import signal
import tempfile

import jax
import pytest

# Set before jax looks for devices. Eight of them represent a small pod.
os.environ['JAX_PLATFORMS'] = 'cpu'
_FLAG = '--xla_force_host_platform_device_count=8'
if _FLAG not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_FLAG}'.strip()
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
if 'GPTJAX_TESTS_COMPILED' not in os.environ:  # one folder for all test processes
    COMPILED = tempfile.TemporaryDirectory(prefix='gptjax-tests-compiled-')
    os.environ['GPTJAX_TESTS_COMPILED'] = COMPILED.name

from tests import runs  # noqa: E402

# A shell starts background jobs with Ctrl-C ignored, and child processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Most of a test's time is compilation. This setting does not reach the processes that
# tests start.
jax.config.update('jax_disable_most_optimizations', True)
# The rest is tracing, which makes millions of objects. Searching them for garbage as
# often as Python does by default takes a tenth of the time.
gc.collect()
gc.freeze()
gc.set_threshold(200_000, 20, 100)


def pytest_xdist_auto_num_workers(config):
    """One process per core, at most four, as each compiles for eight devices."""
    return min(os.cpu_count(), 4)


@pytest.hookimpl(tryfirst=True)  # before pytest deselects the slow tests
def pytest_collection_modifyitems(items):
    """Marks the tests that train a real run as slow, and runs their files first.

    All tests of a file run in one process. If a long file started last, the other
    processes would wait for it.
    """
    for item in items:
        if {'prepared_run', 'trained_run'} & {*item.fixturenames}:
            item.add_marker(pytest.mark.slow)
    slow = {}
    for item in items:
        slow.setdefault(item.path, []).append('slow' in item.keywords)
    share = {path: sum(marks) / len(marks) for path, marks in slow.items()}
    items.sort(key=lambda item: -share[item.path])


def made_once(tmp_path_factory, name, make):
    """Calls `make(folder)` once for all test processes and returns the folder."""
    shared = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        shared = shared.parent
    shared /= name
    shared.mkdir(exist_ok=True)
    folder, draft = shared / 'run', shared / 'draft'
    with open(shared / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be making it
        if not folder.exists():
            make(draft)
            draft.rename(folder)
    return folder


@pytest.fixture
def one_device(monkeypatch):
    """Meshes of one device: on eight, eight engines would compile their programs."""
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, 'devices', lambda *_: first)


@pytest.fixture(scope='session')
def prepared_run(tmp_path_factory):
    """A run directory with the data of configs/tiny.py. Copy it; do not change it."""

    def make(workdir):
        words = ('prepare', '--config=configs/tiny.py', f'--workdir={workdir}')
        runs.finish(runs.start(*words))

    return made_once(tmp_path_factory, 'prepared', make)


@pytest.fixture(scope='session')
def trained_run(prepared_run, tmp_path_factory):
    """A copy of `prepared_run` with a model that was trained for four steps."""

    def make(workdir):
        runs.copy(prepared_run, workdir)
        runs.finish(runs.start('pretrain', f'--workdir={workdir}', *runs.SHORT))

    return made_once(tmp_path_factory, 'trained', make)
