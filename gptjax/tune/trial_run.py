"""One trial of a study: a run with the values of the trial, and how it ended."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import jax
from ml_collections import ConfigDict
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from gptjax.core import artifact, run_dir, storage
from gptjax.core.console import UserError
from gptjax.models import parameter_count, settings
from gptjax.train.metrics import read_metrics
from gptjax.train.stopping import watching
from gptjax.tune.samplers import EXCESS
from gptjax.tune.search_space import Dimension

DATABASE = (SQLAlchemyError, StorageInternalError)  # its errors
CONFIG = 'config'  # attribute of a trial: its config; its folder may be elsewhere
# Each objective, and whether less or more is better. The losses are the lowest ones of
# a run, because later stages load that checkpoint.
OBJECTIVES = dict(
    loss='minimize', bits_per_byte='minimize', tokens_per_second='maximize'
)


class Options(NamedTuple):
    """What the command line asks for; all but `num_trials` and `url` stays the same.

    dimensions: the search space; `space` is its text.
    num_trials: of all processes and restarts together.
    url: of a database that several machines share; None: RUN/study.db.
    max_params, max_flops: trials above are not trained; 0: no limit.
    """

    stage: str
    space: str
    dimensions: list[Dimension]
    num_trials: int
    sampler: str
    pruner: str
    objectives: tuple[str, ...]
    url: str | None = None
    max_params: int = 0
    max_flops: float = 0.0


class Training(NamedTuple):
    """How a trial is prepared and trained.

    prepare: (values by field, folder) -> its config, checked.
    train: (config, folder, lock) -> the summary of the stage. The data are built
        inside `lock`, so that one process builds and the others link.
    words: the arguments of the command that name the config, for the trial's own.
    derive: from the values of a trial to those and the ones that follow from them.
    """

    prepare: Callable[[dict, Path], ConfigDict]
    train: Callable[[ConfigDict, Path, contextlib.AbstractContextManager], dict]
    words: tuple[str, ...] = ()
    derive: Callable[[dict], dict] = lambda values: values


def run_trial(study, trial, values, options, folder, training, lock) -> dict | None:
    """Trains, and tells the database how it ended, unless a signal interrupted it.

    Returns the summary of the stage, or None if it has none. `lock` is that of
    `Training.train`.
    """
    name = f'trial {trial.number:03} ({describe_values(values)})'
    print(f'{name} in {folder}')

    def fail(message: str) -> None:
        trial.set_user_attr('error', message)
        study.tell(trial, state=TrialState.FAIL)
        print(f'{name} failed: {message}')

    summary = None
    try:
        values = training.derive(values)
        config = training.prepare(values, folder)
        trial.set_user_attr(CONFIG, run_dir.to_json(config))
        excess, message = _measure_excess(config, options)
        if message:
            trial.set_user_attr(EXCESS, excess)
            trial.set_user_attr('error', message)
            study.tell(trial, state=TrialState.PRUNED)
            print(f'{name} is not trained: {message}')
            return None
        fields = [f'--config.{field}={value}' for field, value in values.items()]
        words = [options.stage, *training.words, *fields, f'--workdir={folder}']
        others = lambda: sorted(folder.parent.glob('[0-9]*'))
        with (
            run_dir.written_as(words),
            artifact.sharing(others),
            watching(lambda done, figures: _watch(trial, options, done, figures)),
        ):
            summary = training.train(config, folder, lock)
    except UserError as error:
        fail(str(error))
        return None
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        fail('the memory of the device is not enough')
        return None
    except Exception as error:
        # The same command goes on with the next trial; after a full disk, or an error
        # of the database, with this one.
        if not isinstance(error, DATABASE) and not storage.unwritable(error, folder):
            fail(f'{type(error).__name__}: {error}'.split('\n')[0])
        raise
    if summary['reason'] == 'interrupted':
        return summary
    figures = read_figures(folder)
    missing = [
        o for o in options.objectives if not math.isfinite(figures.get(o, math.nan))
    ]
    if summary['reason'] == 'pruned':
        study.tell(trial, state=TrialState.PRUNED)
        print(f'{name} pruned at step {summary["step"]:,}')
    elif summary['reason'] == 'not finite' or missing:
        fail(
            'the validation loss was not finite'
            if summary['reason'] == 'not finite' or 'loss' not in figures
            else f'{options.stage} measures no {missing[0]}: use another --objectives'
        )
    else:
        study.tell(trial, [figures[objective] for objective in options.objectives])
        print(f'{name}: {describe_figures(figures, options)}')
    return summary


def _watch(trial, options, done: int, figures: dict) -> str | None:
    """Why a run should end after a validation."""
    if not math.isfinite(figures['loss']):
        return 'not finite'
    if options.pruner == 'none' or not done:
        return None
    last = trial.storage.get_trial(trial._trial_id).last_step or 0
    if done > last:
        trial.report(figures[options.objectives[0]], done)
    # Before `last` the trial, which was killed since, has been judged and not pruned.
    return 'pruned' if done >= last and trial.should_prune() else None


def _measure_excess(config: ConfigDict, options: Options) -> tuple[list[float], str]:
    """How far a model is above each limit, as a share of it, and a message if it is."""
    limits = dict(max_params=options.max_params, max_flops=options.max_flops)
    if not any(limits.values()):
        return [], ''
    model = settings.resolve(config.model, config.tokenizer.vocab_size)
    train = config.train
    tokens = train.num_steps * train.batch_size * config.data.context
    amounts = dict(
        max_params=parameter_count.num_params(model),
        max_flops=tokens
        * parameter_count.train_flops_per_token(model, config.data.context)[0],
    )
    excess = {k: amounts[k] / limit - 1 for k, limit in limits.items() if limit}
    message = [
        f'--{name}={limits[name]:,}: it has {amounts[name]:,.0f}'
        for name, share in excess.items()
        if share > 0
    ]
    return [*excess.values()], '; '.join(message)


def read_figures(folder: Path) -> dict[str, float]:
    """The figures of a run by objective: the lowest losses, the median throughput."""
    columns = {'loss': [], 'bits_per_byte': [], 'tokens_per_second': []}
    for record in read_metrics(folder / 'metrics.jsonl'):
        for name, values in columns.items():
            wanted = 'train' if name == 'tokens_per_second' else 'validation'
            if record['split'] == wanted and record.get(name) is not None:
                values.append(record[name])
    reduce = dict(loss=min, bits_per_byte=min, tokens_per_second=median)
    return {name: reduce[name](values) for name, values in columns.items() if values}


def describe_values(values: dict) -> str:
    """'optim.learning_rate=0.003, model.width=128'"""
    words = {k: f'{v:.4g}' if isinstance(v, float) else v for k, v in values.items()}
    return ', '.join(f'{name}={word}' for name, word in words.items())


def describe_figures(figures: dict, options: Options) -> str:
    """'loss 3.1234, tokens_per_second 1,234'"""
    return ', '.join(
        f'{name} {figures[name]:,.0f}' if name == 'tokens_per_second'
        else f'{name} {figures[name]:.4f}'
        for name in options.objectives
    )  # fmt: skip
