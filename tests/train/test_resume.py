"""A run that is killed and started again is bitwise the run that was left alone."""

import random
import signal
import time

import pytest

from gptjax.train.metrics import read_metrics
from tests import runs

STEPS = 40
SHORT = (
    '--config.train.num_steps=40',
    '--config.train.eval_every=10',
    '--config.train.eval_batches=2',
    '--config.checkpoint.every=10',
)


def command(workdir, *more):
    return ('pretrain', '--config=configs/tiny.py', '--workdir', workdir, *SHORT, *more)


@pytest.fixture(scope='module')
def undisturbed(prepared_run, tmp_path_factory):
    workdir = runs.copy(prepared_run, tmp_path_factory.mktemp('undisturbed') / 'run')
    runs.finish(runs.start(*command(workdir)))
    return runs.records(workdir)


def wait_until(process, condition, seconds=600):
    """Returns when the condition holds; the process must not have ended before.

    The limit is only there for a process that hangs.
    """
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.002)


def lines_of(workdir):
    path = workdir / 'metrics.jsonl'
    return path.read_bytes().count(b'\n') if path.exists() else 0


def kill_and_go_on(workdir, condition, delay=0.0):
    """kill -9 once the condition holds, then the same command to its end."""
    process = runs.start(*command(workdir))
    wait_until(process, condition)
    time.sleep(delay)
    process.kill()
    process.communicate()
    return runs.finish(runs.start(*command(workdir)))


@pytest.mark.slow
def test_undisturbed_run_has_every_line_once(undisturbed):
    steps = [line['step'] for line in undisturbed if line['split'] == 'train']
    assert steps == list(range(1, STEPS + 1))
    validated = [r['step'] for r in undisturbed if r['split'] == 'validation']
    assert validated == [10, 20, 30, 40]
    assert undisturbed[-1]['loss'] < 0.9 * undisturbed[0]['loss']


@pytest.mark.slow
def test_kill_after_a_checkpoint(prepared_run, undisturbed, tmp_path):
    workdir = runs.copy(prepared_run, tmp_path / 'run')
    checkpoint = workdir / 'checkpoints' / '00000010' / '_CHECKPOINT_METADATA'
    output, _ = kill_and_go_on(workdir, checkpoint.exists)
    assert 'resuming from the checkpoint of step' in output
    assert runs.records(workdir) == undisturbed
    # Once more: there is nothing left to do.
    before = (workdir / 'metrics.jsonl').read_bytes()
    assert runs.gptjax(*command(workdir, '--config.mesh.data=8')) == 0
    assert (workdir / 'metrics.jsonl').read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(2))
def test_kill_at_random(seed, prepared_run, undisturbed, tmp_path):
    workdir = runs.copy(prepared_run, tmp_path / 'run')
    rng = random.Random(seed)
    lines = rng.randrange(STEPS)
    kill_and_go_on(workdir, lambda: lines_of(workdir) >= lines, 0.1 * rng.random())
    assert runs.records(workdir) == undisturbed


@pytest.mark.slow
def test_kill_while_a_checkpoint_is_written(prepared_run, undisturbed, tmp_path):
    workdir = runs.copy(prepared_run, tmp_path / 'run')
    folder = workdir / 'checkpoints'
    kill_and_go_on(workdir, lambda: [*folder.glob('*tmp*')])
    assert not [*folder.glob('*tmp*')]
    assert runs.records(workdir) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize('place', ('documents', 'tokenizer', 'prepared'))
def test_kill_while_data_is_made(place, prepared_run, tmp_path):
    workdir = tmp_path / 'run'
    words = ('prepare', '--config=configs/tiny.py', f'--workdir={workdir}')
    process = runs.start(*words)
    wait_until(process, (workdir / place).exists)
    process.kill()
    process.communicate()
    assert not (workdir / 'config.json').exists()
    assert not (workdir / place / 'manifest.json').exists()
    runs.finish(runs.start(*words))
    for expected in prepared_run.rglob('*/tokens-*.npy'):
        found = workdir / expected.relative_to(prepared_run)
        assert found.read_bytes() == expected.read_bytes()


def stop(workdir, number):
    """The output of a run that a signal ends in the middle, and its exit code."""
    process = runs.start(*command(workdir))
    wait_until(process, lambda: lines_of(workdir) >= 13)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


@pytest.mark.slow
@pytest.mark.parametrize('number, code', ((signal.SIGTERM, 75), (signal.SIGINT, 130)))
def test_signal_saves_and_says_so(number, code, prepared_run, undisturbed, tmp_path):
    workdir = runs.copy(prepared_run, tmp_path / 'run')
    returned, output, errors = stop(workdir, number)
    assert returned == code, errors
    assert 'the same command goes on from there' in output
    assert 'Traceback' not in errors
    reached = read_metrics(workdir / 'metrics.jsonl')[-1]['step']
    assert (workdir / 'checkpoints' / f'{reached:08d}').is_dir()
    if number == signal.SIGINT:
        return  # it goes on from the same checkpoint
    output, _ = runs.finish(runs.start(*command(workdir)))
    assert f'resuming from the checkpoint of step {reached}' in output
    assert runs.records(workdir) == undisturbed


@pytest.mark.slow
def test_sigterm_and_ctrl_c_while_data_is_made(tmp_path):
    for number, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        workdir = tmp_path / f'run{code}'
        process = runs.start(*command(workdir))
        wait_until(process, (workdir / 'documents').exists)
        process.send_signal(number)
        _, errors = runs.finish(process, code)
        assert 'Traceback' not in errors


@pytest.mark.slow
def test_going_on_with_another_mesh(prepared_run, undisturbed, tmp_path):
    workdir = runs.copy(prepared_run, tmp_path / 'run')
    assert stop(workdir, signal.SIGTERM)[0] == 75
    mesh = ('--config.mesh.fsdp=2', '--config.mesh.tensor=2', '--config.mesh.context=2')
    runs.finish(runs.start(*command(workdir, *mesh, '--config.mesh.data=1'), devices=8))
    found = runs.records(workdir)
    assert [(r['step'], r['split']) for r in found] == [
        (r['step'], r['split']) for r in undisturbed
    ]
    for ours, theirs in zip(found, undisturbed, strict=True):
        # Found: 2e-7, sums of float32 (6e-8) in another order, in 40 steps.
        assert ours['loss'] == pytest.approx(theirs['loss'], rel=1e-6)
