"""The training loop of every stage: restore, step, log, validate, save, stop.

A stage describes its model, loss, data and updates in a `Stage`, and `fit` runs it. An
update of the supervised stages is one optimizer step. An update of reinforcement
learning draws a rollout and makes several optimizer steps on it; checkpoints are saved
only between rollouts.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gptjax.core import run_dir
from gptjax.core.artifact import Artifact
from gptjax.core.console import UserError, progress_bar
from gptjax.core.energy import EnergyMeter
from gptjax.optim.optimizer import make_learning_rate, make_optimizer
from gptjax.parallel import multihost, watchdog
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.metrics import MetricsWriter
from gptjax.train.state import TrainState, abstract_state, create_state
from gptjax.train.step import make_train_step
from gptjax.train.stopping import WATCH, EarlyStopping, interruption

PROFILED_STEPS = 3


class Setup(NamedTuple):
    """What `fit` passes to `Stage.make_training`.

    state: the restored state, or a new one.
    abstract: the shapes, dtypes and shardings of the state.
    step: `(state, batch, *frozen) -> (state, metrics)`, from `make_train_step`.
    stack: a stage enters contexts here that `fit` closes when the run ends.
    """

    state: TrainState
    optimizer: optax.GradientTransformation
    abstract: TrainState
    step: Callable
    stack: contextlib.ExitStack


class Training(NamedTuple):
    """How a stage makes updates and validates.

    update: `(state, step, record) -> (state, metrics)`, starting at step number `step`.
    validate: `(state, steps done) -> {'loss': float, ...}`.
    documents_of: from a step number to the ids of the documents in its batch.
    flops_per_token: (causal, full) FLOPs of training on a token; None: metrics have no
        throughput.
    peak_flops: of all devices together, per second.
    steps_per_update: optimizer steps that one call of `update` makes.
    fetch_late: metrics are device arrays, and are fetched during the next update.
    validate_first: a new run is also validated before its first update.
    unit: the progress bar counts updates in this unit.
    describe: from the metrics of an update to a note for the progress bar.
    """

    update: Callable[[TrainState, int, dict], tuple[TrainState, dict]]
    validate: Callable[[TrainState, int], dict]
    documents_of: Callable[[int], list[str]] | None = None
    flops_per_token: tuple[float, float] | None = None
    peak_flops: float = math.nan
    steps_per_update: int = 1
    fetch_late: bool = True
    validate_first: bool = False
    unit: str = 'steps'
    describe: Callable[[dict], str] = lambda metrics: f'loss {metrics["loss"]:.3f}'


class Stage(NamedTuple):
    """What differs between stages of training.

    name: printed before the stage's messages.
    mesh: holds the state.
    shapes, axes: of the trained parameters.
    loss_fn: see `make_train_step`.
    init: `() -> (function, *arguments)`. `function(*arguments)`, which is jitted,
        returns the parameters of step 0. Not called when a run resumes.
    identity: see `Checkpoints`.
    make_training: not called for a run that has already ended.
    record: JSON values that a resumed run needs besides its arrays.
    """

    name: str
    mesh: Mesh
    shapes: Any
    axes: Any
    loss_fn: Callable
    init: Callable[[], tuple]
    identity: dict
    make_training: Callable[[Setup], Training]
    record: dict = {}


class Command(NamedTuple):
    """A stage of training on the command line: check, build artifacts, train.

    train: `(config, workdir) -> summary`.
    check: refuses a config that cannot train, before any data is built.
    artifacts: from the config to the artifacts that are built before training.
    sections: config sections that the stage needs besides those of every config.
    example: a config file that has these sections.
    complete: `(config, workdir) -> config` with values taken from `start.run`.
    unit: the unit of the validation's bits per byte; '': they are not printed.
    """

    train: Callable[[ConfigDict, Path], dict]
    check: Callable[[ConfigDict], None]
    artifacts: Callable[[ConfigDict], tuple[Artifact, ...]] = lambda config: ()
    sections: tuple[str, ...] = ()
    example: str = ''
    complete: Callable[[ConfigDict, Path], ConfigDict] = lambda config, workdir: config
    unit: str = ''


class Outcome(NamedTuple):
    """How a run ended; `signal` is the number of the signal that stopped it."""

    state: TrainState
    record: dict
    signal: int | None = None

    def summary(self, **more) -> dict:
        """The result of a stage; `reason` is why training ended."""
        return dict(
            reason=self.record['reason'] or 'interrupted',
            signal=self.signal,
            step=int(self.state.step),
            skipped=self.record['skipped'],
            validation=self.record['validation'],
            **more,
        )


def new_record(config: ConfigDict) -> dict:
    """JSON values that every run resumes from besides its arrays."""
    return dict(
        skipped=0,  # steps with a loss or gradient that was not finite
        skipped_in_a_row=0,
        validation=None,  # the newest validation
        early_stopping=EarlyStopping(config.train.patience)._asdict(),
        reason=None,  # once it has ended: 'finished', 'stopped early', or of `watching`
    )


def fit(config: ConfigDict, workdir: Path, stage: Stage) -> Outcome:
    """Trains from the newest checkpoint, or from step 0, until the end or a signal.

    Raises:
        UserError: the checkpoints do not fit the config; or `train.max_bad_steps` steps
            in a row were not finite; or the stage failed, after the state was saved.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(stage.mesh))
        # ---- state ----------------------------------------------------------
        optimizer = make_optimizer(config, stage.shapes)
        abstract = abstract_state(stage.shapes, optimizer, stage.axes, stage.mesh)
        checkpoints = Checkpoints(
            workdir / 'checkpoints',
            identity=stage.identity,
            keep=config.checkpoint.keep,
            keep_best=config.checkpoint.keep_best,
        )
        stack.callback(checkpoints.close)  # waits until a running save is complete
        stack.enter_context(watchdog.watching(workdir, config.distributed))
        watchdog.at('the restore')
        with progress_bar('reading the newest checkpoint', 0):
            restored = checkpoints.restore(abstract, report=multihost.print_once)
        record = {**new_record(config), **stage.record}
        watchdog.at('the initialisation')
        if restored is None:
            init, *arguments = stage.init()
            with progress_bar('initialising the model', 0):
                state = create_state(init, optimizer, abstract, *arguments)
            del init, arguments  # frees the weights that the run was initialised from
        else:
            state, saved_record = restored
            record.update(saved_record)
            if record['reason'] is not None:  # the run has already ended
                return Outcome(state, record)
            multihost.print_once(
                f'{stage.name}: resuming from the checkpoint of step '
                f'{int(state.step):,}'
            )

        # ---- data and updates -------------------------------------------------
        train = config.train
        step = make_train_step(
            stage.loss_fn, optimizer, abstract, train.accumulation, config.seed
        )
        step = watchdog.named('the update', step)
        watchdog.at('the data', int(state.step))
        training = stage.make_training(Setup(state, optimizer, abstract, step, stack))

        # ---- train ------------------------------------------------------------
        writer = None
        if multihost.is_first_process():
            # A new run drops all metrics of a killed run, those of step 0 included.
            kept_step = -1 if restored is None else int(state.step)
            writer = MetricsWriter(workdir, kept_step)
            stack.callback(writer.close)
            run_dir.write_environment(workdir)
        loop = _Loop(config, workdir, training, checkpoints, writer, state, record)
        return loop.run(new=restored is None)


class _Loop:
    """The state of a run, and what each update does to it."""

    def __init__(self, config, workdir, training, checkpoints, writer, state, record):
        self.config, self.workdir, self.training = config, workdir, training
        self.checkpoints, self.writer = checkpoints, writer
        self.state, self.record = state, record
        self.learning_rate = make_learning_rate(config)
        stopping = EarlyStopping(**record['early_stopping'])
        self.stopping = stopping._replace(patience=config.train.patience)
        self.asked_to_stop = None  # the reason
        self.saved_step = int(state.step)
        self.pending = None  # (steps done, metrics) that are still on the devices
        self.energy = EnergyMeter()
        self.restart_clock()
        self.advance = None

    def run(self, new: bool) -> Outcome:
        config, training, train = self.config, self.training, self.config.train
        first, last = int(self.state.step), train.num_steps
        stride, stop_signal = training.steps_per_update, None
        with (
            interruption() as requested_signal,
            progress_bar(
                'training', last // stride, training.unit, first // stride
            ) as self.advance,
            contextlib.ExitStack() as profile,
        ):
            self.advance(0, 'compiling')
            if new and training.validate_first:
                self.validate(0)
            elif not new and self.is_due(first) and self.last_validated() < first:
                self.validate(first)  # this validation failed in the earlier process
            for step in range(first, last, stride):
                if step == train.profile_step:
                    folder = str(self.workdir / 'profile')
                    profile.enter_context(jax.profiler.trace(folder))
                watchdog.at('the batch', step)  # until `update` calls Setup.step
                with self.saving_on_error(step):
                    self.state, metrics = training.update(self.state, step, self.record)
                self.write_pending()
                done = step + stride
                self.pending = (done, metrics)
                if not training.fetch_late:
                    self.write_pending()
                if step - PROFILED_STEPS + 1 == train.profile_step >= 0:
                    jax.block_until_ready(metrics)
                    profile.close()

                best = False
                if self.is_due(done):
                    self.write_pending()
                    with self.saving_on_error(done):
                        best = self.validate(done)
                stop_signal = requested_signal(done // stride)
                stop = self.stopping.should_stop or self.asked_to_stop or stop_signal
                if done < last and stop:
                    break
                due = done // config.checkpoint.every > step // config.checkpoint.every
                if done < last and (due or (best and config.checkpoint.keep_best)):
                    self.save(done)
            self.write_pending()
            done = int(self.state.step)
            if self.stopping.should_stop:
                self.record['reason'] = 'stopped early'
            elif done == last:
                self.record['reason'] = 'finished'
            else:
                self.record['reason'] = self.asked_to_stop
            self.advance(0, 'saving')
            if done > self.saved_step:
                self.save(done)
            watchdog.at('the last save', done)
            self.checkpoints.wait()
        return Outcome(self.state, self.record, stop_signal)

    def is_due(self, done: int) -> bool:
        """Whether the run validates after `done` steps."""
        train, before = self.config.train, done - self.training.steps_per_update
        due = done // train.eval_every > before // train.eval_every
        return done > 0 and (due or done == train.num_steps)

    def last_validated(self) -> int:
        validation = self.record['validation']
        return -1 if validation is None else validation['step']

    def restart_clock(self) -> None:
        """Time and energy from here on are those of the next update."""
        self.clock = time.perf_counter()
        self.energy.read()

    def write_pending(self) -> None:
        """Fetches and writes the pending metrics; stops after too many bad steps."""
        if self.pending is None:
            return
        watchdog.at('the metrics')
        (done, metrics), self.pending = self.pending, None
        metrics, record = dict(metrics), self.record
        for good in np.ravel(metrics.pop('good', ())) == 1.0:
            record['skipped'] += int(not good)
            record['skipped_in_a_row'] = 0 if good else record['skipped_in_a_row'] + 1
        values = {name: float(value) for name, value in metrics.items()}
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        values.update(
            learning_rate=float(self.learning_rate(done - 1)),
            step_seconds=seconds,
            skipped=record['skipped'],
        )
        if (joules := self.energy.read()) is not None:
            values['joules'] = joules
        note = self.training.describe(values)
        if self.training.flops_per_token:
            rate = values['tokens'] / seconds
            causal, full = self.training.flops_per_token
            values.update(
                tokens_per_second=rate,
                mfu_causal=rate * causal / self.training.peak_flops,
                mfu_full=rate * full / self.training.peak_flops,
            )
            note = f'{note}, {rate:,.0f} tokens/s'
        if self.writer:
            self.writer.write(done, 'train', values)
        self.advance(1, note)
        if record['skipped_in_a_row'] >= self.config.train.max_bad_steps:
            raise UserError(self.describe_divergence(done - 1))

    def validate(self, done: int) -> bool:
        """Validates; returns whether the loss is the lowest so far."""
        watchdog.at('the validation', done)
        validation = self.training.validate(self.state, done)
        watchdog.at('the next step')
        self.record['validation'] = dict(validation, step=done)
        before, self.stopping = self.stopping, self.stopping.after(validation['loss'])
        self.record['early_stopping'] = self.stopping._asdict()
        self.asked_to_stop = WATCH.get()(done, validation)
        if self.writer:
            self.writer.write(done, 'validation', validation)
        self.restart_clock()
        return self.stopping.best != before.best

    def save(self, done: int) -> None:
        """Saves a checkpoint, with the validation loss if it is of this step."""
        self.write_pending()
        watchdog.at('the save', done)
        validation, loss = self.record['validation'], None
        if self.last_validated() == done and math.isfinite(validation['loss']):
            loss = validation['loss']
        self.checkpoints.save(done, self.state, self.record, loss)
        self.saved_step = done
        self.restart_clock()

    @contextlib.contextmanager
    def saving_on_error(self, done: int) -> Iterator[None]:
        """Saves the state of step `done` if the stage raises a UserError."""
        try:
            yield
        except UserError:
            if done > self.saved_step:
                self.save(done)
            raise

    def describe_divergence(self, step: int) -> str:
        documents = advice = ''
        if self.training.documents_of:
            names = self.training.documents_of(step)
            listed = ', '.join(names[:8]) + (', …' if len(names) > 8 else '')
            documents = f' (documents {listed})'
            advice = (
                ', or look at the batch with '
                f'`python -m gptjax data --workdir {self.workdir} --step {step}`'
            )
        return (
            f'train.max_bad_steps={self.config.train.max_bad_steps}: the loss or its '
            f'gradient was not finite in {self.record["skipped_in_a_row"]} updates in '
            f'a row, up to step {step}{documents}; the newest checkpoint stays: lower '
            f'optim.learning_rate, set optim.clip_norm=1.0{advice}'
        )


def with_steps(
    config: ConfigDict, epochs: float, rows: float, warmup_fraction: int = 2
) -> ConfigDict:
    """The config with `train.num_steps` for `epochs` passes over the training rows.

    With epochs=0, `train.num_steps` stays as configured. The warm-up is at most
    1 / warmup_fraction of the steps.
    """
    config = config.copy_and_resolve_references()
    if epochs:
        num_steps = max(1, math.ceil(epochs * rows / config.train.batch_size))
        config.train.num_steps = num_steps
        config.optim.warmup_steps = min(
            config.optim.warmup_steps, num_steps // warmup_fraction
        )
    return config
