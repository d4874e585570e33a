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
from optuna.exceptions import OptunaError
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from gptjax.core import hashing, run_dir, storage
from gptjax.core.config import complete
from gptjax.core.console import UserError
from gptjax.tune.samplers import make_pruner, make_sampler
from gptjax.tune.search_space import check_grid
from gptjax.tune.trial_run import DATABASE, OBJECTIVES, Options, Training, run_trial

PLACE = 'place'  # attribute of a trial: the machine and RUN that have its folder
SECONDS_TO_WAIT = 100  # a process that writes locks the whole SQLite file for a moment


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
    try:
        return _run_trials(study, options, base, workdir, training, describe)
    except DATABASE as error:
        raise UserError(
            f'{_describe_place(options, workdir)}: {_reason(error)}: when no other '
            'program keeps the database, run the same command to continue'
        ) from error


def _run_trials(study, options, base, workdir, training, describe) -> dict | None:
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
            if summary and summary.get('signal'):  # perhaps just as the trial ended
                return dict(summary, reason='interrupted')
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
    path, place = workdir / 'study.db', _describe_place(options, workdir)
    url = options.url or f'sqlite:///{path}'
    if not options.url and path.exists():
        _check_database(path)
    try:
        wait = {'timeout': SECONDS_TO_WAIT} if url.startswith('sqlite') else {}
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
    except (SQLAlchemyError, OptunaError, RuntimeError, ImportError) as error:
        advice = 'leave --storage out' if options.url else 'another --workdir'
        raise UserError(
            f'{place}: no database of a study can be opened there '
            f'({_reason(error)}): use another one, or {advice}'
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
    if not known:
        return
    known = dict(known, config=complete(known.get('config', {})))  # of an older version
    for name, old, new in run_dir.differences(known, definition):
        raise UserError(
            f'--workdir={workdir} holds another study ({name}: {old!r} there, {new!r} '
            'here): use another --workdir'
        )


def _check_database(path: Path) -> None:
    """Raises UserError if an SQLite file is damaged."""
    try:
        with contextlib.closing(
            sqlite3.connect(path, timeout=SECONDS_TO_WAIT)
        ) as database:
            problem = database.execute('PRAGMA quick_check').fetchone()[0]
    except sqlite3.OperationalError:  # such as a lock: Optuna will say it
        return
    except sqlite3.DatabaseError as error:
        problem = str(error)
    if problem != 'ok':
        problem = problem.strip().split('\n')[-1]
        raise UserError(
            f'{path} is damaged ({problem}): bring it back from a copy, or use another '
            '--workdir'
        )


def _describe_place(options: Options, workdir: Path) -> str:
    """Where the database is, without its password."""
    if not options.url:
        return str(workdir / 'study.db')
    try:
        url = sqlalchemy.make_url(options.url).render_as_string(hide_password=True)
    except ArgumentError:
        url = '…'  # it may have a password anywhere
    return f'--storage={url}'


def _reason(error: BaseException) -> str:
    """'OperationalError: database is locked'; Optuna has that in the cause."""
    error = error.__cause__ or error
    line, *_ = str(error).strip().split('\n')
    return f'{type(error).__name__}: {line}'


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
    here = f'{platform.node()}:{workdir}'
    points = check_grid(options.dimensions, options.sampler) or math.inf
    is_new = False
    while True:
        for trial in study.trials:
            folder = trial_folder(workdir, trial.number)
            is_here = folder.exists() or trial.user_attrs.get(PLACE) == here
            if trial.state != TrialState.RUNNING or not is_here:
                continue
            if _claim(folder, held):
                if study.trials[trial.number].state != TrialState.RUNNING:
                    held.close()  # it has just ended
                    continue
                if not is_new:
                    print(f'trial {trial.number:03}: continuing it')
                return optuna.Trial(study, trial._trial_id)
        if len(study.trials) >= min(options.num_trials, points):
            return None
        # With its place from the start: killed now, it is the first that is claimed.
        attributes = {PLACE: here}
        study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs=attributes))
        is_new = True


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
    values = {}
    for dimension in options.dimensions:
        # No two trials draw the same values, and a trial that was killed between two
        # fields draws those that it would have.
        words = ('tune', seed, trial.number, dimension.field)
        own_seed = hashing.hash_integer(*words, num_bytes=4)
        study.sampler = make_sampler(options.sampler, options.dimensions, own_seed)
        values[dimension.field] = dimension.suggest(trial)
    return values


def count_states(study: optuna.Study) -> dict[str, int]:
    states = [trial.state.name for trial in study.trials]
    return {state.name: states.count(state.name) for state in TrialState}
