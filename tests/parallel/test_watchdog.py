"""One of two processes dies, stops or stalls: the other ends and says where and why."""

import json
import signal
import threading
import time

import pytest

from configs import common
from gptjax.core.console import UserError
from gptjax.core.process import LOST
from gptjax.parallel import places, watchdog
from tests import runs
from tests.parallel import failures
from tests.train.test_resume import lines_of, wait_until

# Seconds. The first is for compilation, with several such tests at once.
LIMITS = dict(timeout=20, first_timeout=90, join_timeout=120)
WORDS = (
    *('pretrain', '--config=configs/tiny.py', '--config.train.num_steps=12'),
    *('--config.train.eval_every=6', '--config.train.eval_batches=1'),
    *('--config.checkpoint.every=3', '--config.train.batch_size=4'),
    *(f'--config.distributed.{name}={value}' for name, value in LIMITS.items()),
)


# ---- one process


@pytest.fixture
def given_up(monkeypatch, tmp_path):
    """Acts as process 0 of 2, whose end is recorded: [(exit code, place)]."""
    ends = []
    monkeypatch.setattr(watchdog.jax, 'process_count', lambda: 2)

    def leave(code):
        ends.append((code, watchdog.DOG[0].place))
        raise SystemExit

    monkeypatch.setattr(watchdog.os, '_exit', leave)
    return ends


def section(**limits):
    section = common.base().distributed
    section.update(limits)
    return section


def wait_for(condition):
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_place_that_lasts_too_long_ends_the_process(given_up, tmp_path, capfd):
    folder = tmp_path / places.FOLDER
    other = dict(step=4, name='the batch', count=1, beat=0, ended='')
    with watchdog.watching(tmp_path, section(timeout=1, first_timeout=2)):
        watchdog.at('the update', 5)
        places.write_place(folder, 1, other)
        time.sleep(1.4)  # the first time, twice as long is allowed
        assert not given_up
        watchdog.at('the update', 6, progress=time.monotonic)
        time.sleep(1.4)  # there is progress
        assert not given_up
        watchdog.at('the metrics')
        watchdog.at('the metrics')
        wait_for(lambda: given_up)
    [(code, place)] = given_up
    assert code == LOST and place['step'] == 6 and place['name'] == 'the metrics'
    said = capfd.readouterr().err
    assert (
        'process 0 of 2: no progress for 1 s (distributed.timeout=1) at step 6' in said
    )
    assert 'process 1 is missing: it has died or is stopped at step 4, in the b' in said
    assert 'in test_a_place_that_lasts_too_long' in said  # all stacks


def test_who_is_missing(tmp_path):
    place = dict(step=4, name='the batch', count=9, beat=0, ended='')
    places.write_place(tmp_path, 0, place)
    places.write_place(tmp_path, 2, place)
    places.write_place(tmp_path, 3, dict(place, ended='KeyError: 1'))
    for number, count in ((4, 7), (5, 9)):
        places.write_place(tmp_path, number, dict(place, count=count))

    def beat():
        for number, count in ((4, 7), (5, 9)):
            places.write_place(tmp_path, number, dict(place, count=count, beat=1))

    threading.Timer(0.15, beat).start()
    assert places.find_missing(tmp_path, 0, 6, beat=0.1) == [
        'process 1 is missing: it has not begun, or has ended',
        'process 2 is missing: it has died or is stopped at step 4, in the batch',
        'process 3 ended at step 4, in the batch: KeyError: 1',
        'process 4 is missing: it is still at step 4, in the batch',
    ]


def test_the_file_of_a_process_stays_only_after_an_error(given_up, tmp_path):
    path = tmp_path / places.FOLDER / '0.json'
    with pytest.raises(UserError):
        with watchdog.watching(tmp_path, section()):
            raise UserError('the reason')
    assert json.loads(path.read_text())['ended'] == 'the reason'
    with watchdog.watching(tmp_path, section()):
        watchdog.named('the step', lambda value: value)(1)
        assert watchdog.DOG[0].place['name'] == 'the step'
    assert not path.parent.exists() and not given_up


def test_one_process_is_not_watched(tmp_path):
    step = lambda: 1
    with watchdog.watching(tmp_path, section()):
        watchdog.at('the update', 1)
        assert watchdog.named('the update', step) is step
    assert not [*tmp_path.iterdir()]


# ---- two processes

PLACES = {'the batch': 5, 'the metrics': 4, 'the save': 6, 'the restore': 0}
OFTEN = (('stop', 'the metrics', 1), ('kill', 'the batch', 0))
ALL = [
    (action, name, number)
    for action in failures.ACTIONS
    for name in PLACES
    for number in (0, 1)
]


@pytest.mark.slow
@pytest.mark.parametrize(
    'action, name, number',
    [
        *OFTEN,
        *(pytest.param(*c, marks=pytest.mark.long) for c in ALL if c not in OFTEN),
    ],
)
def test_the_other_process_ends_and_a_restart_goes_on(
    action, name, number, prepared_run, tmp_path
):
    workdir = runs.copy(prepared_run, tmp_path / 'run')
    words = (*WORDS, f'--workdir={workdir}')
    before = failures.fault(action, name, PLACES[name], number)
    if name == 'the restore':  # there has to be a checkpoint
        [alone] = runs.start_cluster(
            (*words, '--config.checkpoint.every=3'), devices=1, count=1
        )
        wait_until(alone, lambda: lines_of(workdir) >= 5)
        alone.terminate()
        runs.finish(alone, 75)
    processes = runs.start_cluster(words, before=before, devices=1)
    faulty, other = processes[number], processes[1 - number]
    began = time.monotonic()
    _, errors = other.communicate(timeout=300)
    seconds = time.monotonic() - began
    # JAX itself aborts a process at once when process 0 is killed.
    assert other.returncode in ((LOST, -signal.SIGABRT) if number == 0 else (LOST,))
    faulty.kill()
    faulty.communicate()
    assert f'process {1 - number} ' in errors and ', in ' in errors, errors
    assert f'process {number} ' in errors and 'at step' in errors, errors
    assert 'most recent call first' in errors, errors
    assert seconds < 200

    for process in runs.start_cluster(words, devices=1):
        runs.finish(process)
    steps = [r['step'] for r in runs.records(workdir) if r['split'] == 'train']
    assert steps == list(range(1, 13))
    assert not [*workdir.glob('.*')]
