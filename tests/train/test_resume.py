"""A run that is killed and resumes is bitwise the run that was not killed."""

import random
import signal
import time
from functools import partial

import pytest

from gptjax.train.metrics import read_metrics
from tests import runs
from tests.post import starts
from tests.train.test_sft import chat_file

STEPS = 40
PRETRAINING = (
    '--config=configs/tiny.py',
    *('--config.train.num_steps=40', '--config.checkpoint.every=10'),
    *('--config.train.eval_every=10', '--config.train.eval_batches=2'),
)
AUGMENT = (
    "--config.data.augment=('subword_regularisation','token_dropout','character_noise')"
)
FINE_TUNING = (
    *('--config.data.validation_fraction=0.2', '--config.sft.epochs=0.0'),
    *('--config.train.num_steps=24', '--config.train.batch_size=8'),
    *('--config.train.eval_every=6', '--config.checkpoint.every=6'),
)
POLICY = (
    '--config.task.rewards.correct.function=shortness',
    *('--config.task.validation=4', '--config.policy.slots=8'),
    *('--config.policy.prompts=4', '--config.policy.replies=4'),
    '--config.policy.epochs=1',
    *('--config.train.batch_size=8', '--config.train.num_steps=16'),
    *('--config.train.eval_every=8', '--config.checkpoint.every=4'),
    *('--config.policy.kl_reward=0.1', '--config.policy.kl_horizon=1000'),
    '--config.policy.reward_running_scale=True',
)


def command(workdir, *more):
    return ('pretrain', f'--workdir={workdir}', *PRETRAINING, *more)


def fine_tuning(folder, start, more, workdir):
    chats = f'--config=configs/sft.py:chat={chat_file(folder)}'
    words = (chats, f'--config.start.run={start}', *FINE_TUNING)
    return ('sft', f'--workdir={workdir}', *words, *more)


def policy(stage, folder, workdir):
    """The command of 'ppo' or 'grpo', from `starts.write_start(folder)`."""
    config, start = f'--config=configs/{stage}.py', folder / 'start'
    problems = folder / 'problems.jsonl'
    words = (f'--config.start.run={start}', f'--config.task.path={problems}', *POLICY)
    return (stage, config, f'--workdir={workdir}', *words)


@pytest.fixture(scope='module')
def undisturbed(prepared_run, tmp_path_factory):
    workdir = runs.copy(prepared_run, tmp_path_factory.mktemp('undisturbed') / 'run')
    runs.finish(runs.start(*command(workdir)))
    return records(workdir)


def records(workdir):
    """The metrics without those that depend on the clock."""
    clocks = ('second', 'mfu')
    return [
        {
            name: value
            for name, value in record.items()
            if not any(clock in name for clock in clocks)
        }
        for record in read_metrics(workdir / 'metrics.jsonl')
    ]


def wait_until(process, condition, seconds=600):
    """Waits until the condition holds; fails if the process ends or hangs."""
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.002)


def lines_of(workdir):
    path = workdir / 'metrics.jsonl'
    return path.read_bytes().count(b'\n') if path.exists() else 0


def has_checkpoint(workdir, step):
    return (workdir / f'checkpoints/{step:08d}/_CHECKPOINT_METADATA').exists


def kill_and_resume(words, condition, delay=0.0):
    """Sends kill -9 when the condition is true; then runs the command to its end."""
    process = runs.start(*words)
    wait_until(process, condition)
    time.sleep(delay)
    process.kill()
    process.communicate()
    return runs.finish(runs.start(*words))[0]


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
    assert 'resuming' in kill_and_resume(command(workdir), has_checkpoint(workdir, 10))
    assert records(workdir) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize('stage', ('augmented', 'sft', 'sft lora', 'grpo'))
def test_other_stages_killed_after_a_checkpoint(stage, request, tmp_path):
    if stage == 'grpo':
        starts.write_start(tmp_path)
        words, first = partial(policy, 'grpo', tmp_path), 4
    elif stage == 'augmented':
        run = request.getfixturevalue('prepared_run')
        words, first = lambda workdir: command(runs.copy(run, workdir), AUGMENT), 10
    else:
        start = request.getfixturevalue('trained_run')
        more = ('--config.lora.rank=4',) if 'lora' in stage else ()
        words, first = partial(fine_tuning, tmp_path, start, more), 6
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    output, _ = runs.finish(runs.start(*words(whole)))
    assert 'finished at step' in output
    assert ('bits per byte of replies' in output) == ('sft' in stage)
    output = kill_and_resume(words(killed), has_checkpoint(killed, first))
    assert 'resuming from the checkpoint of step' in output
    assert records(killed) == records(whole)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(2))
def test_kill_at_random(seed, prepared_run, undisturbed, tmp_path):
    workdir = runs.copy(prepared_run, tmp_path / 'run')
    rng = random.Random(seed)
    lines = rng.randrange(STEPS)
    condition = lambda: lines_of(workdir) >= lines
    kill_and_resume(command(workdir), condition, 0.1 * rng.random())
    assert records(workdir) == undisturbed


@pytest.mark.slow
def test_kill_while_a_checkpoint_is_saved(prepared_run, undisturbed, tmp_path):
    workdir = runs.copy(prepared_run, tmp_path / 'run')
    folder = workdir / 'checkpoints'
    kill_and_resume(command(workdir), lambda: [*folder.glob('*tmp*')])
    assert not [*folder.glob('*tmp*')]
    assert records(workdir) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize('place', ('documents', 'tokenizer', 'prepared'))
def test_kill_while_data_is_built(place, prepared_run, tmp_path):
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
    """(exit code, output, errors) of a run that receives a signal after 13 lines."""
    process = runs.start(*command(workdir))
    wait_until(process, lambda: lines_of(workdir) >= 13)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


@pytest.mark.slow
@pytest.mark.parametrize('number, code', ((signal.SIGTERM, 75), (signal.SIGINT, 130)))
def test_a_signal_saves_and_prints_so(
    number, code, prepared_run, undisturbed, tmp_path
):
    workdir = runs.copy(prepared_run, tmp_path / 'run')
    returned, output, errors = stop(workdir, number)
    assert returned == code, errors
    assert 'run the same command to continue' in output
    assert 'Traceback' not in errors
    reached = read_metrics(workdir / 'metrics.jsonl')[-1]['step']
    assert (workdir / 'checkpoints' / f'{reached:08d}').is_dir()
    if number == signal.SIGINT:
        return  # resuming is the same as after SIGTERM
    output, _ = runs.finish(runs.start(*command(workdir)))
    assert f'resuming from the checkpoint of step {reached}' in output
    assert records(workdir) == undisturbed


@pytest.mark.slow
def test_sigterm_and_ctrl_c_while_data_is_built(tmp_path):
    for number, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        workdir = tmp_path / f'run{code}'
        process = runs.start(*command(workdir))
        wait_until(process, (workdir / 'documents').exists)
        process.send_signal(number)
        _, errors = runs.finish(process, code)
        assert 'Traceback' not in errors


@pytest.mark.slow
def test_resuming_on_another_mesh(prepared_run, undisturbed, tmp_path):
    workdir = runs.copy(prepared_run, tmp_path / 'run')
    assert stop(workdir, signal.SIGTERM)[0] == 75
    mesh = ('--config.mesh.fsdp=2', '--config.mesh.tensor=2', '--config.mesh.context=2')
    words = command(workdir, *mesh, '--config.mesh.data=1')
    runs.finish(runs.start(*words, devices=8))
    resumed = records(workdir)
    assert [(r['step'], r['split']) for r in resumed] == [
        (r['step'], r['split']) for r in undisturbed
    ]
    for ours, theirs in zip(resumed, undisturbed, strict=True):
        # Measured: 2e-7. The order of float32 sums (6e-8) differs over 40 steps.
        assert ours['loss'] == pytest.approx(theirs['loss'], rel=1e-6)
    # A finished run is not trained again.
    before = (workdir / 'metrics.jsonl').read_bytes()
    assert runs.gptjax(*command(workdir, '--config.mesh.data=8')) == 0
    assert (workdir / 'metrics.jsonl').read_bytes() == before
