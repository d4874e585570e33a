"""Two processes train as one: the same data, the same losses, the same files."""

import socket
import subprocess
import sys

import pytest

from gptjax.parallel import multihost
from tests import runs

WORDS = (
    'pretrain',
    '--config=configs/tiny.py',
    '--config.train.num_steps=12',
    '--config.train.eval_every=6',
    '--config.train.eval_batches=2',
    '--config.checkpoint.every=6',
    '--config.mesh.data=2',
    '--config.mesh.fsdp=2',
    '--config.mesh.tensor=2',
)

# What a cluster's environment would tell `jax.distributed.initialize`.
PROCESS = """
import sys, jax
from gptjax.main import main
from gptjax.parallel import multihost
multihost.SHARED_SECONDS = 3.0
port, number, *argv = sys.argv[1:]
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
initialize = jax.distributed.initialize
jax.distributed.initialize = lambda: initialize(f'localhost:{port}', 2, int(number))
sys.argv = ['gptjax', *argv, '--multihost']
sys.exit(main(sys.argv))
"""


def start_two(workdirs, *words):
    """Two processes of four devices each, as one cluster."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, '-c', PROCESS, str(port), str(number), *WORDS]
            + [f'--workdir={workdir}', *words],
            cwd=runs.ROOT,
            env=runs.environment(devices=4),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, workdir in enumerate(workdirs)
    ]


@pytest.mark.slow
def test_two_processes_are_one_run(prepared_run, tmp_path):
    alone = runs.copy(prepared_run, tmp_path / 'alone')
    runs.finish(runs.start(*WORDS, f'--workdir={alone}', devices=8))
    expected = runs.records(alone)

    workdir = tmp_path / 'together'  # nothing prepared
    first, second = start_two([workdir, workdir])
    said = runs.finish(first)[0], runs.finish(second)[0]
    assert 'documents: ' in said[0] and 'finished at step 12' in said[0]
    # Gloo's threads greet on standard output, and cut into each other's lines.
    for ours in ('documents: ', 'tokens: ', 'parameters', 'finished'):
        assert ours not in said[1]
    found = runs.records(workdir)
    assert [(r['step'], r['split']) for r in found] == [
        (r['step'], r['split']) for r in expected
    ]
    for ours, theirs in zip(found, expected, strict=True):
        # Found: 8e-8, sums of float32 in another order between processes.
        assert ours['loss'] == pytest.approx(theirs['loss'], rel=1e-6)
    assert not [*workdir.glob('.*')]
    # One process goes on where two stopped: there is nothing left to do.
    output, _ = runs.finish(runs.start(*WORDS, f'--workdir={workdir}', devices=8))
    assert 'finished at step 12' in output


@pytest.mark.slow
def test_what_the_first_refuses_the_others_refuse(tmp_path):
    missing = (
        '--config.data.sources.chitchat.kind=text',
        '--config.data.sources.chitchat.path=/nowhere',
    )
    for process in start_two([tmp_path / 'run'] * 2, *missing):
        assert 'no such file' in runs.finish(process, code=2)[1]


@pytest.mark.slow
def test_a_run_directory_that_is_not_shared(tmp_path):
    for process in start_two([tmp_path / 'a', tmp_path / 'b']):
        assert 'a folder that all of them share' in runs.finish(process, code=2)[1]


def test_one_process_makes_at_once(tmp_path):
    made = []
    multihost.first_makes(tmp_path / 'run', lambda: made.append(1))
    assert made == [1] and not (tmp_path / 'run').exists()
    assert multihost.is_first()
    multihost.meet('nobody else')
