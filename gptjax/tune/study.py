"""A study: trials of a search space, by one or several processes, until all are done.

    RUN/study.json        what the study is: space, stage, config, objectives, limits
    RUN/study.db          the trials, by Optuna, unless --storage names another database
    RUN/trials/000        an ordinary run for each trial
    RUN/best.py, report.html   made again after each trial; see study_page.py

A trial belongs to the process that holds the lock of its folder. If that process is
killed, the kernel releases the lock, and the next process resumes the trial where its
newest checkpoint is: the losses are bitwise those of a trial that was never killed.
"""

import contextlib
import datetime
import fcntl
import math
import platform
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import optuna
import sqlalchemy
from ml_collections import ConfigDict
from optuna.trial import TrialState

from gptjax.core import hashing, run_dir, storage
from gptjax.core.console import UserError
from gptjax.tune.samplers import make_pruner, make_sampler
from gptjax.tune.search_space import check_grid
from gptjax.tune.trial_run import OBJECTIVES, Options, Training, run_trial

PLACE = 'place'  # attribute of a trial: the machine and RUN that have its folder
SECONDS_TO_CLAIM = 60  # after which a trial without a place belongs to no process


def run_study(
    options: Options,
    base: ConfigDict,
    workdir: Path,
    training: Training,
    describe: Callable[[optuna.Study, Options, Path], str],
) -> dict | None:
    """Runs trials until the study has `num_trials`; None, or how a signal ended it.

    describe: called after each trial; what it returns last is printed.

    Raises:
        UserError: RUN or the database holds another study, or is damaged; or no trial
            was completed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
    with _waiting_lock(workdir / '.ask.lock'):
        study = open_study(options, base, workdir)
    while True:
        with contextlib.ExitStack() as held:
            with _waiting_lock(workdir / '.ask.lock'):
                trial = _claim_trial(study, options, workdir, held)
                if trial is None:
                    break
                values = _suggest(study, trial, options, base.seed)
            folder = trial_folder(workdir, trial.number)
            lock = _waiting_lock(workdir / '.data.lock')
            summary = run_trial(study, trial, values, options, folder, training, lock)
            if summary and summary['reason'] == 'interrupted':
                return summary
            jax.clear_caches()  # a trial's programs are of no use to the next one
        with _waiting_lock(workdir / '.ask.lock'):
            describe(study, options, workdir)
    counts = count_states(study)
    print(
        f'{len(study.trials)} trials: {counts["COMPLETE"]} complete, '
        f'{counts["PRUNED"]} pruned, {counts["FAIL"]} failed, '
        f'{counts["RUNNING"]} still running in other processes'
    )
    if not counts['COMPLETE'] and not counts['RUNNING']:
        errors = [trial.user_attrs.get('error') for trial in study.trials]
        last = [error for error in errors if error][-1:] or ['all were pruned']
        raise UserError(f'--workdir={workdir}: no trial was completed: {last[0]}')
    with _waiting_lock(workdir / '.ask.lock'):
        print(describe(study, options, workdir))
    return None


# ---- the database


def open_study(options: Options, base: ConfigDict, workdir: Path) -> optuna.Study:
    """The study of RUN, new or continued."""
    if (workdir / 'config.json').exists():
        raise UserError(
            f'--workdir={workdir} is a run, not a study: use another --workdir'
        )
    definition = _define(options, base)
    _refuse_other_study(
        storage.read_undamaged(workdir / 'study.json'), definition, workdir
    )
    path = workdir / 'study.db'
    url, place, advice = (
        f'sqlite:///{path}',
        str(path),
        'or move it away to begin again',
    )
    if options.url:
        url, advice = options.url, 'or leave --storage out'
        place = f'--storage={_without_password(url)}'
    elif path.exists():
        _check_database(path)
    try:
        # A process that writes locks the whole SQLite file for a moment.
        wait = {'timeout': 100} if url.startswith('sqlite') else {}
        database = optuna.storages.RDBStorage(
            url, engine_kwargs=dict(connect_args=wait, pool_pre_ping=True)
        )
        study = optuna.create_study(
            study_name=workdir.name,
            storage=database,
            pruner=make_pruner(options.pruner, base.train.eval_every),
            directions=[OBJECTIVES[name] for name in options.objectives],
            load_if_exists=True,
        )
        known, has_trials = study.user_attrs.get('definition'), bool(study.trials)
    except (
        *(sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError),
        *(RuntimeError, ImportError),
    ) as error:
        reason = str(error).strip().split('\n')[0]
        raise UserError(
            f'{place}: no database of a study can be opened there '
            f'({type(error).__name__}: {reason}): use another one, {advice}'
        ) from error
    _refuse_other_study(known, definition, workdir)
    if not has_trials and any((workdir / 'trials').glob('[0-9]*/config.json')):
        raise UserError(
            f'{place} has no trials, but {workdir}/trials has: use the database that '
            'they are in, or another --workdir'
        )
    if known is None:
        study.set_user_attr('definition', definition)
    if not (workdir / 'study.json').exists():
        storage.write_json(workdir / 'study.json', definition)
    return study


def _define(options: Options, base: ConfigDict) -> dict:
    """What has to stay the same in a study."""
    left_out = ('dimensions', 'num_trials', 'url')
    fields = {k: v for k, v in options._asdict().items() if k not in left_out}
    fields['objectives'] = [*options.objectives]
    return dict(fields, config=run_dir.to_json(base))


def _refuse_other_study(known: dict | None, definition: dict, workdir: Path) -> None:
    changes = run_dir.differences(known, definition) if known else ()
    for name, old, new in changes:
        raise UserError(
            f'--workdir={workdir} holds another study ({name}: {old!r} there, {new!r} '
            'here): use another --workdir'
        )


def _check_database(path: Path) -> None:
    """Raises UserError if an SQLite file is damaged."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=100)) as database:
            problem = database.execute('PRAGMA quick_check').fetchone()[0]
    except sqlite3.DatabaseError as error:
        problem = str(error)
    if problem != 'ok':
        problem = problem.strip().split('\n')[-1]
        raise UserError(
            f'{path} is damaged ({problem}): bring it back from a copy, or use another '
            '--workdir'
        )


def _without_password(url: str) -> str:
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return '…'  # it may have a password anywhere


# ---- who runs which trial


def trial_folder(workdir: Path, number: int) -> Path:
    return workdir / 'trials' / f'{number:03}'


@contextlib.contextmanager
def _waiting_lock(path: Path) -> Iterator[None]:
    """Waits until no other process of this machine is inside."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, 'w')
    except OSError as error:
        raise UserError(
            f'--workdir={path.parent}: cannot write there ({error.strerror}): use '
            'another --workdir'
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f'--workdir={path.parent}: its file system has no locks '
                f'({error.strerror}): use another one'
            ) from error
        yield


def _claim_trial(study, options, workdir, held) -> optuna.Trial | None:
    """A trial whose process was killed, else a new one, else None.

    `held` keeps the lock of its folder. Call this inside `.ask.lock`.
    """
    for trial in study.trials:
        if trial.state == TrialState.RUNNING and _was_begun_here(
            trial, options, workdir
        ):
            if _claim(trial_folder(workdir, trial.number), held):
                if study.trials[trial.number].state != TrialState.RUNNING:
                    held.close()  # it has just ended
                    continue
                print(f'trial {trial.number:03}: continuing it')
                return optuna.Trial(study, trial._trial_id)
    points = check_grid(options.dimensions, options.sampler) or math.inf
    if len(study.trials) >= min(options.num_trials, points):
        return None
    trial = study.ask()
    trial.set_user_attr(PLACE, f'{platform.node()}:{workdir}')
    _claim(trial_folder(workdir, trial.number), held)
    return trial


def _was_begun_here(trial, options, workdir) -> bool:
    """Whether this machine may resume a trial, if no process has it."""
    if trial_folder(workdir, trial.number).exists():
        return True
    if PLACE in trial.user_attrs:
        return trial.user_attrs[PLACE] == f'{platform.node()}:{workdir}'
    # Its process was killed before it said where, or is about to, on another machine.
    age = datetime.datetime.now() - trial.datetime_start
    return not options.url or age.total_seconds() > SECONDS_TO_CLAIM


def _claim(folder: Path, held: contextlib.ExitStack) -> bool:
    """Locks the folder of a trial until `held` is closed; False if a process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = held.enter_context(open(folder / '.trial.lock', 'w'))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    return True


def _suggest(study, trial, options, seed) -> dict:
    """The values of a trial by field; those that it has already stay."""
    # The number belongs to one trial, so that no two draw the same values.
    seed = hashing.hash_integer('tune', seed, trial.number, num_bytes=4)
    study.sampler = make_sampler(options.sampler, options.dimensions, seed)
    return {d.field: d.suggest(trial) for d in options.dimensions}


def count_states(study: optuna.Study) -> dict[str, int]:
    states = [trial.state.name for trial in study.trials]
    return {state.name: states.count(state.name) for state in TrialState}
