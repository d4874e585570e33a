"""The training loop of every stage: restore, step, log, validate, save, stop.

A stage is what differs (`Stage`): what is trained and how it begins, the loss, what its
data is, and how an update is made. `fit` does the rest. Reinforcement learning is a
stage whose update draws a rollout first and then makes several steps on it; between
these steps nothing is saved.
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
from gptjax.optim.optimizer import make_learning_rate, make_optimizer
from gptjax.parallel import multihost
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.metrics import MetricsWriter
from gptjax.train.state import TrainState, abstract_state, create_state
from gptjax.train.step import make_train_step
from gptjax.train.stopping import EarlyStopping, interruption

PROFILED_STEPS = 3


class Start(NamedTuple):
    """What `fit` hands to a stage once it knows where the run goes on from.

    state: of the newest checkpoint, or of step 0.
    optimizer: of the config.
    abstract: the state's shapes, dtypes and shardings.
    step: `(state, batch, *frozen) -> (state, metrics)`, of the stage's loss.
    stack: closes what is entered here when the run ends.
    """

    state: TrainState
    optimizer: optax.GradientTransformation
    abstract: TrainState
    step: Callable
    stack: contextlib.ExitStack


class Training(NamedTuple):
    """How a stage makes updates, from `Start` on.

    update: `(state, step, record) -> (state, metrics)`, from step number `step` on.
    validate: from (state, steps done) to a dict of floats with `loss`.
    documents_of: from a step to the names of the documents in its batch.
    flops_per_token: (causal, full), of training; None: throughput is not reported.
    peak_flops: of all devices together, per second.
    steps_per_update: steps that one call of `update` makes.
    fetch_late: metrics are arrays on devices, fetched while the next update runs.
    validate_first: a new run is validated before its first update too.
    unit: what one update is, for the progress bar.
    describe: from an update's metrics to a few words beside the bar.
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
    """What a stage of training is.

    name: the word before what is printed.
    mesh: where the state lives.
    shapes, axes: of the parameters that are trained.
    loss_fn: of `make_train_step`.
    init: `() -> (function, *arguments)`: the function, which is jitted, makes the
        parameters of step 0 from the arguments. Not called where a run resumes.
    identity: what a checkpoint must have been made with to fit; see `Checkpoints`.
    start: from `Start` to `Training`. Not called for a run that has come to its end.
    record: JSON values that the stage resumes from besides its arrays.
    """

    name: str
    mesh: Mesh
    shapes: Any
    axes: Any
    loss_fn: Callable
    init: Callable[[], tuple]
    identity: dict
    start: Callable[[Start], Training]
    record: dict = {}


class Command(NamedTuple):
    """A stage of training as the command line runs it: check, make, train.

    train: `(config, workdir) -> summary`.
    check: refuses a config that cannot train, before minutes go into data.
    artifacts: from the config to what is made before training.
    sections: of the config, which the stage needs besides those of every config.
    example: a config that has them.
    complete: `(config, workdir) -> config` with what it takes from `start.run`.
    unit: of the validation's bits per byte; '': they are not printed.
    """

    train: Callable[[ConfigDict, Path], dict]
    check: Callable[[ConfigDict], None]
    artifacts: Callable[[ConfigDict], tuple[Artifact, ...]] = lambda config: ()
    sections: tuple[str, ...] = ()
    example: str = ''
    complete: Callable[[ConfigDict, Path], ConfigDict] = lambda config, workdir: config
    unit: str = ''


class Outcome(NamedTuple):
    """How a run ended, and by which signal where one ended it."""

    state: TrainState
    record: dict
    signal: int | None = None

    @property
    def reason(self) -> str:
        """'finished', 'stopped early', or 'interrupted' by a signal."""
        return self.record['reason'] or 'interrupted'

    def summary(self, **more) -> dict:
        """What a stage returns."""
        return dict(
            reason=self.reason,
            signal=self.signal,
            step=int(self.state.step),
            skipped=self.record['skipped'],
            validation=self.record['validation'],
            **more,
        )


def new_record(config: ConfigDict) -> dict:
    """What every run resumes from besides its arrays; JSON, kept in checkpoints."""
    return dict(
        skipped=0,  # steps that were not finite, so far
        skipped_in_a_row=0,
        validation=None,  # the newest validation
        early_stopping=EarlyStopping(config.train.patience)._asdict(),
        reason=None,  # why the run ended, once it has
    )


def fit(config: ConfigDict, workdir: Path, stage: Stage) -> Outcome:
    """Trains RUN from its newest checkpoint, or from step 0, to its end or a signal.

    Raises:
        UserError: checkpoints do not fit the config, `train.max_bad_steps` steps in a
            row were not finite, or the stage cannot go on; the state is saved.
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
        stack.callback(checkpoints.close)  # what is being saved is saved to its end
        with progress_bar('reading the newest checkpoint', 0):
            restored = checkpoints.restore(abstract, report=multihost.print_once)
        record = {**new_record(config), **stage.record}
        if restored is None:
            init, *arguments = stage.init()
            with progress_bar('making the model', 0):
                state = create_state(init, optimizer, abstract, *arguments)
            del init, arguments  # the model that the run starts from may go
        else:
            state, saved_record = restored
            record.update(_complete_record(saved_record))
            if record['reason'] is not None:  # it had ended
                return Outcome(state, record)
            multihost.print_once(
                f'{stage.name}: going on from the checkpoint of step '
                f'{int(state.step):,}'
            )

        # ---- data, and how updates are made -----------------------------------
        train = config.train
        step = make_train_step(
            stage.loss_fn, optimizer, abstract, train.accumulation, config.seed
        )
        training = stage.start(Start(state, optimizer, abstract, step, stack))

        # ---- train ------------------------------------------------------------
        first = int(state.step)
        writer = None
        if multihost.is_first_process():
            # A new run keeps nothing of one that was killed, not even of step 0.
            writer = MetricsWriter(workdir, -1 if restored is None else first)
            stack.callback(writer.close)
            run_dir.write_environment(workdir)
        loop = _Loop(config, workdir, training, checkpoints, writer, state, record)
        return loop.run(new=restored is None)


def _complete_record(record: dict) -> dict:
    """A checkpoint's record as it is written today.

    Reinforcement learning once kept its early stopping in two fields of its own.
    """
    record = dict(record)
    if 'lowest_loss' in record:
        best, worse = record.pop('lowest_loss'), record.pop('worse', 0)
        record['early_stopping'] = EarlyStopping(0, best, worse)._asdict()
    return record


class _Loop:
    """One run of the loop: its state, and what each update does to it."""

    def __init__(self, config, workdir, training, checkpoints, writer, state, record):
        self.config, self.workdir, self.training = config, workdir, training
        self.checkpoints, self.writer = checkpoints, writer
        self.state, self.record = state, record
        self.learning_rate = make_learning_rate(config)
        self.stopping = EarlyStopping(**record['early_stopping'])
        self.stopping = self.stopping._replace(patience=config.train.patience)
        self.saved = int(state.step)
        self.pending = None  # (steps done, metrics) that have not been fetched
        self.clock = time.perf_counter()
        self.tracing = False
        self.advance = None

    def run(self, new: bool) -> Outcome:
        config, training = self.config, self.training
        first, last = int(self.state.step), config.train.num_steps
        stride, stop_signal = training.steps_per_update, None
        with (
            interruption() as requested_signal,
            progress_bar(
                'training', last // stride, training.unit, first // stride
            ) as self.advance,
            contextlib.closing(_Trace(config, self.workdir)) as trace,
        ):
            self.advance(0, 'compiling')
            if new and training.validate_first:
                self.validate(0)
            elif not new and self.is_due(first) and self.last_validated() < first:
                self.validate(first)  # it failed, after the checkpoint was saved
            for step in range(first, last, stride):
                trace.before(step)
                with self.keeping(step):
                    self.state, metrics = training.update(self.state, step, self.record)
                self.settle()
                done = step + stride
                self.pending = (done, metrics)
                if not training.fetch_late:
                    self.settle()
                trace.after(step, metrics)

                best = False
                if self.is_due(done):
                    self.settle()
                    with self.keeping(done):
                        best = self.validate(done)
                stop_signal = requested_signal(done // stride)
                if done < last and (self.stopping.should_stop or stop_signal):
                    break
                due = done // config.checkpoint.every > step // config.checkpoint.every
                if done < last and (due or (best and config.checkpoint.keep_best)):
                    self.save(done)
            self.settle()
            done = int(self.state.step)
            if self.stopping.should_stop:
                self.record['reason'] = 'stopped early'
            elif done == last:
                self.record['reason'] = 'finished'
            self.advance(0, 'saving')
            if done > self.saved:
                self.save(done)
            self.checkpoints.wait()
        return Outcome(self.state, self.record, stop_signal)

    def is_due(self, done: int) -> bool:
        """Whether a validation stands after so many steps."""
        train, before = self.config.train, done - self.training.steps_per_update
        due = done // train.eval_every > before // train.eval_every
        return done > 0 and (due or done == train.num_steps)

    def last_validated(self) -> int:
        validation = self.record['validation']
        return -1 if validation is None else validation['step']

    def settle(self) -> None:
        """Fetches and records the pending metrics; stops on too many bad steps."""
        if self.pending is None:
            return
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
        words = self.training.describe(values)
        if self.training.flops_per_token:
            rate = values['tokens'] / seconds
            causal, full = self.training.flops_per_token
            values.update(
                tokens_per_second=rate,
                mfu_causal=rate * causal / self.training.peak_flops,
                mfu_full=rate * full / self.training.peak_flops,
            )
            words = f'{words}, {rate:,.0f} tokens/s'
        if self.writer:
            self.writer.write(done, 'train', values)
        self.advance(1, words)
        if record['skipped_in_a_row'] >= self.config.train.max_bad_steps:
            raise UserError(self.divergence(done - 1))

    def validate(self, done: int) -> bool:
        """Whether the validation is the best so far."""
        validation = self.training.validate(self.state, done)
        self.record['validation'] = dict(validation, step=done)
        before, self.stopping = self.stopping, self.stopping.after(validation['loss'])
        self.record['early_stopping'] = self.stopping._asdict()
        if self.writer:
            self.writer.write(done, 'validation', validation)
        self.clock = time.perf_counter()
        return self.stopping.best != before.best

    def save(self, done: int) -> None:
        """Saves, with the loss of this very step where there is one to compare by."""
        self.settle()
        validation, loss = self.record['validation'], None
        if self.last_validated() == done and math.isfinite(validation['loss']):
            loss = validation['loss']
        self.checkpoints.save(done, self.state, self.record, loss)
        self.saved = done
        self.clock = time.perf_counter()

    @contextlib.contextmanager
    def keeping(self, done: int) -> Iterator[None]:
        """Saves where the stage cannot go on: what was learnt so far is not lost."""
        try:
            yield
        except UserError:
            if done > self.saved:
                self.save(done)
            raise

    def divergence(self, step: int) -> str:
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
            'the loss or its gradient was not finite in '
            f'{self.record["skipped_in_a_row"]} updates in a row, up to step '
            f'{step}{documents}: the newest checkpoint stays: lower '
            f'optim.learning_rate, set optim.clip_norm=1.0{advice}'
        )


class _Trace:
    """A profile of the steps from `train.profile_step` on, in RUN/profile."""

    def __init__(self, config: ConfigDict, workdir: Path):
        self.first, self.folder = config.train.profile_step, workdir / 'profile'
        self.running = False

    def before(self, step: int) -> None:
        if step == self.first:
            jax.profiler.start_trace(str(self.folder))
            self.running = True

    def after(self, step: int, metrics) -> None:
        if self.running and step == self.first + PROFILED_STEPS - 1:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        if self.running:
            jax.profiler.stop_trace()
            self.running = False


def with_steps(
    config: ConfigDict, epochs: float, rows: float, warmup_fraction: int = 2
) -> ConfigDict:
    """The config with `train.num_steps` for so many passes over the training rows.

    With epochs 0 its `train.num_steps` stay. The warm-up is at most
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
