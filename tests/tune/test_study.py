"""A study loses no trial and doubles none, however its processes end."""

import ast
import contextlib
import errno
import json
import math
import signal
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import optuna
import pytest

from gptjax.command_line import read_config_file
from gptjax.core.console import UserError
from gptjax.tune import seeds, study, trial_run
from tests import runs
from tests.tune import studies


def start(workdir, moment='') -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, '-m', 'tests.tune.studies', str(workdir), moment],
        cwd=runs.ROOT,
        env=runs.environment(),
    )


@pytest.mark.slow
def test_a_study_that_was_killed_is_that_which_was_not(tmp_path):
    studies.run(tmp_path / 'whole' / 'study')
    killed = tmp_path / 'killed' / 'study'
    for moment in ('asked000', '1:2', '4:3'):
        assert start(killed, moment).wait(timeout=300) == -signal.SIGKILL
    studies.run(killed)
    assert len(studies.trials_of(killed)) == 6
    assert studies.results_of(killed) == studies.results_of(
        tmp_path / 'whole' / 'study'
    )


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path):
    processes = [start(tmp_path, 'together') for _ in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    lines = (tmp_path / 'trained').read_text().split()
    trained = [line.rsplit(':', 1)[0] for line in lines]
    assert sorted(trained) == [f'{n}:{done}' for n in range(6) for done in (1, 2, 3)]
    assert len({line.rsplit(':', 1)[1] for line in lines}) == 2
    values = [
        params['optim.learning_rate'] for params, *_ in studies.results_of(tmp_path)
    ]
    assert len(set(values)) == 6


def test_more_trials_continue_a_study(tmp_path):
    studies.run(tmp_path, num_trials=2, sampler='tpe')
    first = studies.results_of(tmp_path)
    studies.run(tmp_path, num_trials=3, sampler='tpe')
    results = studies.results_of(tmp_path)
    assert results[:2] == first and len(results) == 3


def test_a_grid_has_every_point_once(tmp_path):
    space = 'optim.learning_rate=log(1e-4,1e-2,3); optim.warmup_steps=int(0,4,4)'
    studies.run(tmp_path, num_trials=99, sampler='grid', space=space)
    points = [tuple(params.values()) for params, *_ in studies.results_of(tmp_path)]
    assert points == [
        (pytest.approx(rate), steps) for rate in (1e-4, 1e-3, 1e-2) for steps in (0, 4)
    ]


def test_the_best_config_and_the_page(tmp_path):
    studies.run(tmp_path, num_trials=10)
    results = studies.results_of(tmp_path)
    params, *_ = min(results, key=lambda result: result[1])
    config = read_config_file(str(tmp_path / 'best.py'))
    assert config.optim.learning_rate == params['optim.learning_rate']
    assert config.model.width == params['model.width'] and config.model.num_heads == 4
    assert '--config' in ast.get_docstring(
        ast.parse((tmp_path / 'best.py').read_text())
    )
    page = (tmp_path / 'report.html').read_text()
    assert page.count('<svg viewBox="0 0') == 3  # history, and a slice for each field
    assert page.count('class="bar main"') == 2 and 'best of 10' in page
    assert 'nan' not in page


def test_pruning_stops_a_bad_trial(tmp_path):
    bad = lambda config: 9.0 if config.optim.warmup_steps == 6 else 1.0
    space = 'optim.warmup_steps=int(1,6)'
    options = dict(loss_of=bad, space=space, sampler='grid', pruner='median')
    ends = []
    studies.run(tmp_path, lambda *place: ends.append(place), **options)
    *others, (_, values, state) = studies.results_of(tmp_path)
    assert {state for *_, state in others} == {'COMPLETE'} and state == 'PRUNED'
    assert values == [9.2] and ends[-1] == (5, 1)  # after its first validation


def test_failed_trials_are_counted(tmp_path, capsys):
    def loss_of(config):
        if config.optim.warmup_steps == 1:
            raise UserError('optim.warmup_steps=1: no')
        return math.nan if config.optim.warmup_steps == 2 else 1.0

    space = 'optim.warmup_steps=int(1,3)'
    studies.run(tmp_path, loss_of=loss_of, space=space, sampler='grid')
    states = [state for *_, state in studies.results_of(tmp_path)]
    assert states == ['FAIL', 'FAIL', 'COMPLETE']
    printed = capsys.readouterr().out
    assert 'failed: optim.warmup_steps=1: no' in printed and 'not finite' in printed
    assert '1 complete, 0 pruned, 2 failed' in printed
    with pytest.raises(UserError, match='no trial was completed: .*not finite'):
        nothing = dict(loss_of=lambda config: math.inf, num_trials=1)
        studies.run(tmp_path / 'none', **nothing)


def test_an_error_that_nobody_expects_is_a_failed_trial(tmp_path):
    def loss_of(config):
        if config.optim.warmup_steps == 1:
            raise ValueError('a bug')
        return 1.0

    options = dict(space='optim.warmup_steps=int(1,2)', sampler='grid')
    with pytest.raises(ValueError, match='a bug'):
        studies.run(tmp_path, loss_of=loss_of, **options)
    studies.run(tmp_path, loss_of=loss_of, **options)
    first, second = studies.trials_of(tmp_path)
    assert first.user_attrs['error'] == 'ValueError: a bug'
    assert (first.state.name, second.state.name) == ('FAIL', 'COMPLETE')


def test_a_locked_database_and_a_full_disk_lose_no_trial(tmp_path, monkeypatch):
    monkeypatch.setattr(study, 'SECONDS_TO_WAIT', 0.1)
    studies.run(tmp_path, num_trials=1)
    with contextlib.closing(sqlite3.connect(tmp_path / 'study.db')) as other:
        lock = lambda number, done: done == 3 and other.execute('BEGIN EXCLUSIVE')
        for before in (lock, lambda number, done: None):  # locked during, and at first
            with pytest.raises(UserError, match=r'study\.db: .*database is locked'):
                studies.run(tmp_path, before)

    def fill(number, done):
        raise OSError(errno.ENOSPC, 'no space', str(tmp_path / 'trials/002/a'))

    with pytest.raises(OSError, match='no space'):
        studies.run(tmp_path, fill)
    studies.run(tmp_path)
    assert [state for *_, state in studies.results_of(tmp_path)] == ['COMPLETE'] * 6


def test_a_resumed_trial_is_judged_where_it_was_not_yet(tmp_path):
    """Steps 1 and 2 were reported before it was killed; it resumes at step 1."""
    trial = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=5)).ask()
    watch = lambda done, loss: trial_run._watch(
        trial, SimpleNamespace(pruner='median', objectives=['loss']), done, loss
    )
    assert watch(1, dict(loss=1.0)) is None
    assert watch(2, dict(loss=9.0)) == 'pruned'  # and then it was killed
    assert watch(1, dict(loss=1.0)) is None
    assert watch(2, dict(loss=9.0)) == 'pruned'


def test_limits_and_two_objectives(tmp_path):
    limits = dict(objectives=('loss', 'tokens_per_second'), max_params=200_000)
    space = 'optim.learning_rate=log(1e-3,1e-2,2); model.width=choice(32,64)'
    trained = set()
    studies.run(
        tmp_path,
        lambda number, done: trained.add(number),
        space=space, sampler='grid', **limits,
    )  # fmt: skip
    results = studies.results_of(tmp_path)
    assert [state for *_, state in results] == ['COMPLETE', 'PRUNED'] * 2
    assert trained == {0, 2} and results[2][1] == [pytest.approx(0), 64.0]
    assert 'max_params=200,000: it has 360,' in (tmp_path / 'report.html').read_text()


def test_what_is_no_study_of_this_command_is_one_error(tmp_path):
    first = tmp_path / 'first'
    studies.run(first, num_trials=1)
    other = dict(space='optim.learning_rate=log(1e-4,1e-2)')
    with pytest.raises(UserError, match=r'another study \(space: .* there'):
        studies.run(first, **other)
    (first / 'study.json').unlink()
    with pytest.raises(UserError, match=r'another study \(space: .* there'):
        studies.run(first, **other)
    content = (first / 'study.db').read_bytes()
    for damaged in (b'no database' * 999, content[:5000], content[:4096] + bytes(9999)):
        (first / 'study.db').write_bytes(damaged)
        with pytest.raises(UserError, match=r'study\.db is damaged'):
            studies.run(first)
    (first / 'study.db').unlink()
    with pytest.raises(UserError, match='study.db has no trials, but'):
        studies.run(first)
    for url in ('nothing', 'x://user:secret@host/db', f'sqlite:///{tmp_path}/no/where'):
        with pytest.raises(UserError, match='no database of a study') as error:
            studies.run(tmp_path / 'second', url=url)
        assert 'secret' not in str(error.value) and '\n' not in str(error.value)
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.json').write_text('{}')
    with pytest.raises(UserError, match='is a run, not a study'):
        studies.run(tmp_path / 'run')


def test_a_shared_database(tmp_path):
    url = f'sqlite:///{tmp_path}/shared.db'
    for machine in ('a', 'b'):  # a machine has its folder of the same name
        studies.run(tmp_path / machine / 'study', num_trials=3, url=url)
    assert len([*tmp_path.glob('a/study/trials/*')]) == 3
    studies.run(tmp_path / 'b' / 'study', num_trials=4, url=url)
    assert [p.name for p in tmp_path.glob('b/study/trials/*')] == ['003']


def test_several_seeds(tmp_path, capsys):
    for count in (3, 4):  # the second command adds a seed
        options = seeds.make_options('pretrain', 3, count)._asdict()
        studies.run(
            tmp_path,
            loss_of=lambda config: float(config.seed),
            describe=seeds.describe_seeds,
            **options,
        )
        result = json.loads((tmp_path / 'seeds.json').read_text())
        assert [run['seed'] for run in result['runs']] == [3, 4, 5, 6][:count]
        # Student's t is 4.303 for 2 degrees of freedom, 3.182 for 3.
        deviation = {3: 1.0, 4: math.sqrt(5 / 3)}[count]
        half = {3: 4.3027, 4: 3.1824}[count] * deviation / math.sqrt(count)
        mean = {3: 4.0, 4: 4.5}[count]
        assert result['loss']['mean'] == mean
        assert result['loss']['interval'] == pytest.approx(
            [mean - half, mean + half], abs=1e-3
        )
    assert 'mean of 4 seeds: loss 4.5000 (2.4457 to 6.5543' in capsys.readouterr().out
